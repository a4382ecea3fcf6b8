"""Numbers as people read them: counts, bytes and times, to three significant figures.

Units are decimal: 1 kB is 1,000 bytes.
"""

from __future__ import annotations

from math import log10

COUNTS = (("T", 1e12), ("B", 1e9), ("M", 1e6))
BYTES = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
GIGA = 1e9


def figures(number: float, digits: int = 3) -> str:
    """`digits` significant figures, but all digits before the point: 5.7 → 5.70, 1234.5 → 1,234.
    Below 1 one figure less, without zeros at the end: 0.5.
    """
    if number < 1:
        return f"{number:.{digits - 1}g}"
    return f"{number:,.{max(0, digits - 1 - int(log10(number)))}f}"


def count(number: float, digits: int = 3) -> str:
    """8030261248 → 8.03B; below a million without a unit: 128256 → 128,256."""
    for unit, scale in COUNTS:
        if number >= scale:
            return _short(number / scale, digits) + unit
    return _short(number, digits)


def size(number: float) -> str:
    """Bytes: 16060522496 → 16.1 GB."""
    for unit, scale in BYTES:
        if number >= scale:
            return f"{figures(number / scale)} {unit}"
    return f"{number:.0f} B"


def seconds(number: float) -> str:
    """0.0085 → 8.50 ms; 75.25 → 75.2 s."""
    if number < 1:
        return f"{figures(number * 1e3)} ms"
    return f"{number:,.1f} s"


def duration(number: float) -> str:
    """How long a run takes: 40 s, 12 min, 3.5 h."""
    if number < 90:
        return f"{max(round(number), 1)} s"
    if number < 5400:
        return f"{round(number / 60)} min"
    return f"{number / 3600:.1f} h"


def _short(number: float, digits: int) -> str:
    """Figures without zeros after the point."""
    text = figures(number, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def plural(word: str, number: float) -> str:
    """The word for this many: 1 → row, 2 → rows."""
    return word if number == 1 else f"{word}s"


def counted(number: int, word: str) -> str:
    """A number with its word: 1 row, 1,024 rows."""
    return f"{number:,} {plural(word, number)}"
