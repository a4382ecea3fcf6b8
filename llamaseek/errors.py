"""The one error a user sees as a single line: what is wrong, where, and what is allowed."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake in what was asked for: a recipe key, a file, a row, a checkpoint.

    The command line prints its message as one line on stderr and exits with code 2.
    """


def bad_value(field: str, value: Any, allowed: str) -> UserError:
    """The error for a field whose value cannot be used; `allowed` says what could be."""
    return UserError(f"{field}: {shorten(repr(value))} is not allowed; allowed: {allowed}")


def unknown_name(what: str, name: str, known: list[str]) -> UserError:
    """The error for a name that does not exist; names those it begins, or the nearest one."""
    begun = [each for each in sorted(known) if name and each.startswith(name)]
    near = begun or get_close_matches(name, known, n=1, cutoff=0.6)
    names = ", ".join(map(repr, near))
    hint = f"did you mean {names}?" if near else f"known: {', '.join(sorted(known))}"
    return UserError(f"{what} {name!r} is unknown; {hint}")


def shorten(text: str, limit: int = 120) -> str:
    """`text` on one line, cut to `limit` characters, so that an error never floods a terminal."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def quoted(*words: str | Path) -> str:
    """A command to type, quoted for a shell where a word needs it."""
    return shlex.join(map(str, words))
