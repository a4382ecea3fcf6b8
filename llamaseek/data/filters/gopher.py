"""Gopher's quality rules (Rae et al. 2021, §A.1.1), with the thresholds datatrove runs them at."""

from __future__ import annotations

from llamaseek.data.characters import SYMBOLS
from llamaseek.data.documents import Document
from llamaseek.data.stage import Reason, Stage, above, below
from llamaseek.data.words import words

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])


class GopherQuality(Stage):
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
