"""Gopher's quality rules (Rae et al. 2021, §A.1.1), with the thresholds datatrove runs them at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llamaseek.data.clean.stage import CleaningStage, Reason, above, below
from llamaseek.data.clean.words import SYMBOLS, words
from llamaseek.data.documents import Document

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])


class GopherQuality(CleaningStage):
    """Length, word shapes, bullets, ellipses, letters and stop words of natural prose."""

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3
    max_word_length: float = 10
    max_symbols: float = 0.1  # hash signs or ellipses a word
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8  # share of words with a letter
    min_stop_words: int = 2

    def __call__(self, document: Document) -> Document | Reason:
        text = document.text
        found = words(text)
        return self._words(found) or self._symbols(text, found) or self._letters(found) or document

    def _words(self, found: tuple[str, ...]) -> Reason | None:
        lengths = [len(word) for word in found if not _only_symbols(word)]
        count = len(lengths)
        if not self.min_words <= count <= self.max_words:
            return below("words", count, self.min_words) or above("words", count, self.max_words)
        mean = sum(lengths) / count if count else 0.0
        return below("mean word length", mean, self.min_word_length) or above(
            "mean word length", mean, self.max_word_length
        )

    def _symbols(self, text: str, found: tuple[str, ...]) -> Reason | None:
        hashes = text.count("#") / len(found)
        ellipses = (text.count("...") + text.count("…")) / len(found)
        lines = text.splitlines()
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
        open_ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        return (
            above("hash signs a word", hashes, self.max_symbols)
            or above("ellipses a word", ellipses, self.max_symbols)
            or above("lines that begin with a bullet", bullets, self.max_bullet_lines)
            or above("lines that end in an ellipsis", open_ends, self.max_ellipsis_lines)
        )

    def _letters(self, found: tuple[str, ...]) -> Reason | None:
        alphabetic = sum(any(map(str.isalpha, word)) for word in found) / len(found)
        stop_words = len(STOP_WORDS.intersection(found))
        return below("words with a letter", alphabetic, self.min_alphabetic) or below(
            "different stop words", stop_words, self.min_stop_words
        )


def _only_symbols(word: str) -> bool:
    return not word.isalnum() and SYMBOLS.issuperset(word)


PARAGRAPHS = re.compile(r"\n{2,}")
LINES = re.compile(r"\n+")

TOP = {2: 0.2, 3: 0.18, 4: 0.16}
DUPLICATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}


class GopherRepetition(CleaningStage):
    """Lines, paragraphs and n-grams that come again; each limit is a share."""

    max_duplicate_lines: float = 0.3
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_duplicate_paragraph_characters: float = 0.2
    max_top_ngram: dict[int, float] = TOP  # characters of the most frequent n-gram
    max_duplicate_ngrams: dict[int, float] = DUPLICATED  # characters of all repeated n-grams

    def __call__(self, document: Document) -> Document | Reason:
        text = document.text
        return self._pieces(text) or self._ngrams(text, words(text)) or document

    def _pieces(self, text: str) -> Reason | None:
        paragraphs = PARAGRAPHS.split(text.strip())
        count, characters = repeated(paragraphs)
        found = above(
            "duplicate paragraphs", count / len(paragraphs), self.max_duplicate_paragraphs
        ) or above(
            "characters in duplicate paragraphs",
            characters / len(text),
            self.max_duplicate_paragraph_characters,
        )
        if found:
            return found
        lines = LINES.split(text)
        count, characters = repeated(lines)
        return above("duplicate lines", count / len(lines), self.max_duplicate_lines) or above(
            "characters in duplicate lines",
            characters / len(text),
            self.max_duplicate_line_characters,
        )

    def _ngrams(self, text: str, found: tuple[str, ...]) -> Reason | None:
        for n, most in self.max_top_ngram.items():
            share = top_characters(found, n) / len(text)
            if share > most:
                return above(f"characters in the most frequent {n}-gram", share, most)
        for n, most in sorted(self.max_duplicate_ngrams.items()):
            share = duplicate_characters(found, n) / len(text)
            if share > most:
                return above(f"characters in duplicate {n}-grams", share, most)
            if not share:  # where no n-gram comes again, no longer one does
                break
        return None


def repeated(pieces: Iterable[str]) -> tuple[int, int]:
    """How many pieces were there before, and their characters."""
    seen: set[str] = set()
    again = [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def top_characters(found: Sequence[str], n: int) -> int:
    """Characters that the most frequent n-gram takes, spaces between its words included."""
    counts = Counter(zip(*(found[i:] for i in range(n)), strict=False))
    if not counts:
        return 0
    ngram, times = max(counts.items(), key=lambda item: item[1])
    return (sum(map(len, ngram)) + n - 1) * times


def duplicate_characters(found: Sequence[str], n: int) -> int:
    """Characters in n-grams that came before, none counted twice."""
    seen: set[str] = set()
    characters = at = 0
    while at <= len(found) - n:
        ngram = "".join(found[at : at + n])
        if ngram in seen:
            characters += len(ngram)
            at += n
        else:
            seen.add(ngram)
            at += 1
    return characters
