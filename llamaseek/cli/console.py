"""A console for tables whose names and numbers must stay whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED = 100  # columns where no terminal says how many


def wide_console() -> Console:
    """The terminal's width, or in a pipe or a file enough for every table of ours."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPED)
    return console
