"""Gopher's repetition rules (Rae et al. 2021, table A1), with datatrove's thresholds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llamaseek.data.documents import Document
from llamaseek.data.stage import Reason, Stage, above
from llamaseek.data.words import words

PARAGRAPHS = re.compile(r"\n{2,}")
LINES = re.compile(r"\n+")

TOP = {2: 0.2, 3: 0.18, 4: 0.16}
DUPLICATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}


class GopherRepetition(Stage):
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
