"""Rewards of an answer: verifying programs, and reward models.

An answer's code and the search of a regular expression in it run in worker processes, because
either can fail or never end.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from llamaseek.data.bad_rows import RowError
from llamaseek.errors import bad_value
from llamaseek.recipe.post_training import RewardRecipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.rewards.model import RewardModel
from llamaseek.workers.pool import WorkerPool
from llamaseek.workers.sandbox import Sandbox, SandboxLimits, code_of
from llamaseek.workers.worker import JobFailed, WorkerError

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?|-?\.\d+")


def exact(answer: str, wanted: str) -> bool:
    """The same text, but for blanks around it."""
    return answer.strip() == wanted.strip()


def numeric(answer: str, wanted: str) -> bool:
    """The last number of the answer is the last number wanted: `#### 1,200` is `$1200.00`."""
    found, right = last_number(answer), last_number(wanted)
    return found is not None and found == right


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without thousands commas and dollar signs."""
    found = NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


class Pattern:
    """A check that finds a regular expression in the answer; UserError where it is none.

    The answer may be one on which the expression takes for ever: that is one without it.
    """

    def __init__(self, text: str, seconds: float) -> None:
        try:
            re.compile(text, re.DOTALL)
        except re.error as error:
            raise bad_value("rewards.pattern", text, f"a regular expression ({error})") from None
        self._text, self._seconds = text, seconds
        self._pool = WorkerPool("llamaseek.workers.search", memory=1 << 28, cpu=math.ceil(seconds))

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """1 where it is found, 0 where it is not, NaN where that took too long."""
        return list(map(self._score, episodes))

    def _score(self, episode: Episode) -> float:
        job = {"pattern": self._text, "text": episode.text}
        try:
            return float(bool(self._pool.run(job, self._seconds).value.get("found")))
        except JobFailed:
            return 0.0
        except WorkerError:
            return math.nan


class UnitTests:
    """Whether an answer's code passes the tests of its row, in a sandbox."""

    def __init__(self, column: str, seconds: float) -> None:
        self._column, self._limits = column, SandboxLimits(seconds=seconds)
        self._sandbox, self._warned = Sandbox(), False

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """1 where they pass, 0 where they do not, NaN where the sandbox itself failed."""
        self._warn()
        pairs = [(code_of(each.text), str(each.row[self._column])) for each in episodes]
        verdicts = self._sandbox.run_all(pairs, self._limits)
        return [math.nan if each.broken else float(each.passed) for each in verdicts]

    def _warn(self) -> None:
        """Say once what the answers' code can do on this system all the same."""
        lets_through = self._sandbox.confinement().lets_through
        if lets_through and not self._warned:
            listed = "; ".join(lets_through)
            print(f"warning: answers' code runs under limits alone: {listed}", file=sys.stderr)
        self._warned = True


VERIFIABLE = ("exact", "numeric", "regex", "unit_tests")
"""Kinds that say right (1) or wrong (0)."""


@dataclass(frozen=True)
class Episode:
    """A prompt with one sampled answer. `row` is the user's row; `tokens` are both, as ids."""

    place: str
    row: dict[str, Any]
    prompt: list[int]
    answer: list[int]  # with its end, where it has one
    text: str
    finished: bool

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.answer


Scorer = Callable[[Sequence[Episode]], list[float]]
"""The worth of each answer; NaN where it could not be found out, which counts as 0."""


@dataclass(frozen=True)
class Reward:
    """A scorer and its weight in the sum, named by its kind: the second regex is `regex/2`."""

    name: str
    weight: float
    score: Scorer

    @property
    def verifiable(self) -> bool:
        """Whether it says right or wrong."""
        return self.name.partition("/")[0] in VERIFIABLE


def make_rewards(recipes: Sequence[RewardRecipe], tokenizer: Tokenizer) -> list[Reward]:
    """The rewards of a recipe; UserError for a reward model that does not fit."""
    rewards, seen = [], Counter[str]()
    for one in recipes:
        seen[one.kind] += 1
        name = one.kind if seen[one.kind] == 1 else f"{one.kind}/{seen[one.kind]}"
        rewards.append(Reward(name, one.weight, _scorer(one, tokenizer)))
    return rewards


def check_columns(recipes: Sequence[RewardRecipe], place: str, row: dict[str, Any]) -> None:
    """Refuse a row that lacks what an answer is to be held against."""
    for one in recipes:
        if one.kind in ("exact", "numeric", "unit_tests") and row.get(one.column) is None:
            message = f"has no {one.column!r}, which the reward {one.kind} needs"
            raise RowError(place, "without a column", f"{message}; its columns are {sorted(row)}")


def _scorer(recipe: RewardRecipe, tokenizer: Tokenizer) -> Scorer:
    if recipe.kind == "model":
        assert recipe.model is not None
        return RewardModel(recipe.model, tokenizer)
    if recipe.kind == "regex":
        return Pattern(recipe.pattern or "", recipe.timeout)
    if recipe.kind == "unit_tests":
        return UnitTests(recipe.column, recipe.timeout)
    return _each(exact if recipe.kind == "exact" else numeric, recipe.column)


def _each(check: Callable[[str, str], bool], column: str) -> Scorer:
    return lambda episodes: [
        float(check(episode.text, str(episode.row.get(column, "")))) for episode in episodes
    ]
