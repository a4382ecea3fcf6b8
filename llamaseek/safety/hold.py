"""Streamed text, held back until a guard has cleared the piece it stands in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

SENTENCE = re.compile(r"[.!?…。！？]['\")\]]*\s|\n")
LONGEST = 400  # characters that wait without the end of a sentence


@dataclass
class Held(Generic[T]):
    """What was said so far, and what of it (each part with its text) waits to be cleared.

    A piece is due at the end of a sentence or line, and at LONGEST characters without one.
    """

    said: str = ""
    parts: list[T] = field(default_factory=list)
    _waiting: str = ""

    def add(self, part: T, text: str) -> bool:
        """Hold a part; whether it is time to have all that was said judged."""
        self.said += text
        self._waiting += text
        self.parts.append(part)
        return len(self._waiting) >= LONGEST or SENTENCE.search(self._waiting) is not None

    def clear(self) -> list[T]:
        """Let go of everything held, which was found safe."""
        parts, self.parts, self._waiting = self.parts, [], ""
        return parts

    @property
    def waits(self) -> bool:
        """Whether some text has not been judged."""
        return bool(self._waiting)
