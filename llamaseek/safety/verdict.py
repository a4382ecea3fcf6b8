"""What a guard answered. Anything but `safe`, or `unsafe` with codes, is no verdict at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llamaseek.errors import shorten
from llamaseek.text.guard_prompt import Category

UNSAFE = re.compile(r"unsafe(?:\s*\n\s*(\S.*))?", re.DOTALL)


class GuardError(Exception):
    """The guard gave no verdict: it failed, was stopped, took too long, or answered otherwise.

    Whoever asked must then let nothing pass.
    """


class Unread(GuardError):
    """The guard's answer is no verdict; the message quotes it, so it is not for logs."""


@dataclass(frozen=True)
class Verdict:
    """Of one turn: whether it is safe, the violated categories, and how likely unsafe was.

    `probability` is that of the answer's first token beginning `unsafe` (the Llama Guard 3 model
    card's score), whatever the answer then was. `role` is whose turn was judged, user or assistant.
    """

    safe: bool
    categories: tuple[Category, ...]
    probability: float
    role: str

    @property
    def summary(self) -> str:
        """In one line: `safe`, or `unsafe: S2 Non-Violent Crimes`."""
        if self.safe:
            return "safe"
        named = ", ".join(f"{c.code} {c.name}" for c in self.categories)
        return f"unsafe: {named or 'no category named'}"

    def as_json(self) -> dict[str, object]:
        """For programs: role, safe, categories with code and name, probability of unsafe."""
        return {
            "role": self.role,
            "safe": self.safe,
            "categories": [{"code": c.code, "name": c.name} for c in self.categories],
            "unsafe_probability": round(self.probability, 6),
        }


def read_answer(text: str, categories: Sequence[Category]) -> tuple[bool, tuple[Category, ...]]:
    """Whether a guard's answer says safe, and the categories it names.

    `unsafe` alone is unsafe without a name, as is one whose codes are not of the policy: the
    policy has no such category, but a guard that says unsafe is never read as safe. Raises
    Unread for any other answer.
    """
    stripped = text.strip()
    if stripped == "safe":
        return True, ()
    found = UNSAFE.fullmatch(stripped)
    if found is None:
        raise Unread(f"it answered {shorten(repr(text))}, neither safe nor unsafe")
    codes = [code.strip() for code in (found[1] or "").split(",")]
    return False, tuple(c for c in categories if c.code in codes)
