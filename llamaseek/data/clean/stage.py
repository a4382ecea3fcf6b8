"""What a stage says: the document, changed or not, or the reason why it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.data.documents import Document
from llamaseek.recipe.reading import Section


@dataclass(frozen=True)
class Reason:
    """Why a document left: what was measured, what came out, and what would have been allowed."""

    rule: str
    value: float | str
    allowed: str

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.rule}: {value} (allowed: {self.allowed})"


class CleaningStage(Section):
    """A step that judges or changes one document by itself; its fields are its thresholds."""

    def __call__(self, document: Document) -> Document | Reason:
        """The document that is kept, or the reason why it is removed."""
        raise TypeError(f"{type(self).__name__} does not say what it does")


def above(rule: str, value: float, most: float) -> Reason | None:
    """A reason if `value` exceeds `most`."""
    return Reason(rule, value, f"at most {most:g}") if value > most else None


def below(rule: str, value: float, least: float) -> Reason | None:
    """A reason if `value` falls short of `least`."""
    return Reason(rule, value, f"at least {least:g}") if value < least else None
