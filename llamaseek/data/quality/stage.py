"""Documents that a judge would give a poor grade, by the classifier that learnt its grades."""

from __future__ import annotations

from dataclasses import replace

from llamaseek.data.documents import Document
from llamaseek.data.quality.classifier import load_classifier
from llamaseek.data.stage import Reason, Stage, below


class Quality(Stage):
    """Drops documents that score less than `at_least`; the others get `quality` as metadata."""

    classifier: str  # a folder that `data judge` made
    at_least: float

    def __call__(self, document: Document) -> Document | Reason:
        score = round(float(load_classifier(self.classifier).scores([document.text])[0]), 3)
        marked = replace(document, metadata=document.metadata | {"quality": score})
        return below("quality", score, self.at_least) or marked
