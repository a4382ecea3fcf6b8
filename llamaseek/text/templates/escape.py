"""Keeps text that spells a special token apart from that token while a template runs over it.

Each such text gets a character before it that nothing else uses. Where the text comes out with
that character it is text; what comes out without it is the template's own control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from llamaseek.errors import UserError

PRIVATE_USE = range(0xE000, 0xF900)


class Escaper:
    """Marks what strings spell of `names`, with one character before each."""

    def __init__(self, names: Iterable[str], mark: str) -> None:
        self.mark = mark
        self._names = sorted(filter(None, names), key=len, reverse=True)  # the longest match wins
        self._any = "|".join(map(re.escape, self._names)) or "(?!)"

    def put(self, value: Any) -> Any:
        """The value with marks in all its strings."""
        if isinstance(value, str):
            return self._mark_end(re.sub(f"({self._any})", rf"{self.mark}\1", value))
        if isinstance(value, Mapping):
            return {self.put(key): self.put(each) for key, each in value.items()}
        return [self.put(each) for each in value] if isinstance(value, (list, tuple)) else value

    def _mark_end(self, text: str) -> str:
        """Marks an end that would be a special token if the right text came after it."""
        longest = len(self._names[0]) if self._names else 0
        for at in range(max(0, len(text) - longest), len(text)):
            if any(name.startswith(text[at:]) for name in self._names if name[0] == text[at]):
                return text[:at] + self.mark + text[at:]
        return text

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of a rendered text, each with whether it is a control token."""
        at = 0
        for found in re.finditer(f"{self.mark}(?:{self._any})|({self._any})", text):
            if found[1] is not None:
                yield text[at : found.start()].replace(self.mark, ""), False
                yield found[1], True
                at = found.end()
        yield text[at:].replace(self.mark, ""), False


def unused_characters(text: str, count: int) -> list[str]:
    """Characters of private use that do not occur in `text`; UserError where too few are left."""
    taken = set(text)
    free = list(islice((chr(code) for code in PRIVATE_USE if chr(code) not in taken), count))
    if len(free) < count:
        raise UserError("messages: use every private-use character of Unicode")
    return free
