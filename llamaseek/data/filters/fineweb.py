"""FineWeb's own rules (Penedo et al. 2024, §3.6): pages that are lists rather than prose."""

from __future__ import annotations

from llamaseek.data.characters import TERMINATORS
from llamaseek.data.documents import Document
from llamaseek.data.filters.repetition import repeated
from llamaseek.data.stage import Reason, Stage, above, below
from llamaseek.data.words import words


class FineWeb(Stage):
    """Lines that end in punctuation, short lines, repeated lines, line breaks a word."""

    min_punctuated_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30  # characters
    max_duplicate_characters: float = 0.01
    max_line_breaks: float = 0.3  # a word

    def __call__(self, document: Document) -> Document | Reason:
        text = document.text
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return Reason("lines", 0, "at least 1")
        punctuated = sum(line[-1] in TERMINATORS for line in lines) / len(lines)
        short = sum(len(line) <= self.short_line for line in lines) / len(lines)
        duplicate = repeated(lines)[1] / len(text.replace("\n", ""))
        breaks = text.count("\n") / len(words(text))
        return (
            below("lines that end in punctuation", punctuated, self.min_punctuated_lines)
            or above(f"lines of at most {self.short_line} characters", short, self.max_short_lines)
            or above("characters in duplicate lines", duplicate, self.max_duplicate_characters)
            or above("line breaks a word", breaks, self.max_line_breaks)
            or document
        )
