"""C4's rules for web pages (Raffel et al. 2020, §2.2), as its published code applies them."""

from __future__ import annotations

import re
from dataclasses import replace

from llamaseek.data.clean.filters.gopher import repeated
from llamaseek.data.clean.stage import CleaningStage, Reason, above, below
from llamaseek.data.clean.words import TERMINATORS, sentences, words
from llamaseek.data.documents import Document

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


class C4(CleaningStage):
    """Keeps lines that are sentences; drops pages of code, filler or too few sentences."""

    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000

    def __call__(self, document: Document) -> Document | Reason:
        kept = []
        for line in map(str.strip, document.text.splitlines()):
            if not self._is_sentence(line):
                continue
            line = CITATION.sub("", line)
            lowered = line.lower()
            if "lorem ipsum" in lowered:
                return Reason("filler text", "lorem ipsum", "none")
            if "javascript" in lowered:
                continue
            if "{" in line:
                return Reason("curly brackets", "{", "none")
            if not any(policy in lowered for policy in POLICIES):
                kept.append(line)
        count = sum(map(sentences, kept))
        text = "\n".join(kept).strip()
        return below("sentences", count, self.min_sentences) or replace(document, text=text)

    def _is_sentence(self, line: str) -> bool:
        """Whether a line ends as a sentence does, and has words enough but no monster."""
        ending = CITATION.sub("", line)
        if not ending.endswith((".", "?", "!", '"', "'")) or ending.endswith("..."):
            return False
        parts = line.split()
        return len(parts) >= self.min_words_per_line and all(
            len(part) <= self.max_word_length for part in parts
        )


class FineWeb(CleaningStage):
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
