"""Sums and differences of two-digit numbers: a task whose answers a program can check."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llamaseek.data.synthetic.splits import Split, draw


@dataclass(frozen=True)
class Problem:
    """A question and its only right answer, a number."""

    question: str
    answer: str

    @property
    def key(self) -> str:
        """What makes it this problem."""
        return self.question


def _make(rng: Random) -> Problem:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        return Problem(f"{a} + {b} =", str(a + b))
    return Problem(f"{max(a, b)} - {min(a, b)} =", str(abs(a - b)))


def problem(rng: Random, split: Split) -> Problem:
    """A problem of a split; a tenth of all problems is held out."""
    return draw(rng, _make, split)
