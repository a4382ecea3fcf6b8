"""A text from standard input, for `-`."""

from __future__ import annotations

import sys


def read_stdin() -> str:
    """All of standard input; in a terminal it is said that it is waited for."""
    if sys.stdin.isatty():
        print("reading standard input; Ctrl-D at the start of a line ends it", file=sys.stderr)
    return sys.stdin.read()
