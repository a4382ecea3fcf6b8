"""Sums of two-digit numbers, written last digit first: a task whose answers a program can check.

Last digit first is the order in which one adds on paper. A model that writes the first digit
first has to know the carry before it has added what makes it, and takes many times as long to
learn (Lee et al. 2023, "Teaching Arithmetic to Small Transformers").
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llamaseek.data.builtin.words import Split, draw


@dataclass(frozen=True)
class ArithmeticProblem:
    """A question and its only right answer."""

    question: str
    answer: str

    @property
    def key(self) -> str:
        """What makes it this problem."""
        return self.question


def _make(rng: Random) -> ArithmeticProblem:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return ArithmeticProblem(f"{a} + {b} =", str(a + b)[::-1])


def problem(rng: Random, split: Split) -> ArithmeticProblem:
    """A problem of a split; a tenth of all problems is held out."""
    return draw(rng, _make, split)
