"""C4's rules for web pages (Raffel et al. 2020, §2.2), as its published code applies them."""

from __future__ import annotations

import re
from dataclasses import replace

from llamaseek.data.documents import Document
from llamaseek.data.stage import Reason, Stage, below
from llamaseek.data.words import sentences

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


class C4(Stage):
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
