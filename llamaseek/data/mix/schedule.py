"""Which source is next: the one furthest behind its share, so that ratios hold at every moment.

Independent draws would miss a share p by sqrt(p (1 - p) / draws); this misses it by one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaseek.errors import UserError


@dataclass(frozen=True)
class Phase:
    """From row `first` on, these weights hold; they need not sum to one."""

    first: int
    weights: Mapping[str, float]


@dataclass
class Position:
    """The position of a run in its data, from which the very next token follows. JSON in and out.

    `piece` counts a source's pieces over all epochs, `offset` is how much of the next one a row's
    end has already taken. `asked` is what the weights wanted so far, in tokens.
    """

    row: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    piece: dict[str, int] = field(default_factory=dict)
    offset: dict[str, int] = field(default_factory=dict)
    phase: int = 0
    phase_taken: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Position:
        """One that does not change with this one."""
        maps = {k: dict(v) for k, v in vars(self).items() if isinstance(v, dict)}
        return Position(**{**vars(self), **maps})


class Schedule:
    """Weights by phase, and at most `budgets` tokens of a source in the whole run."""

    def __init__(self, phases: Sequence[Phase], budgets: Mapping[str, int]) -> None:
        self.phases, self.budgets = phases, budgets

    def begin_row(self, at: Position, length: int) -> None:
        """Enter the row's phase; each phase keeps its own ratio."""
        phase = max(n for n, phase in enumerate(self.phases) if phase.first <= at.row)
        if phase != at.phase:
            at.phase, at.phase_taken = phase, {}
        for name, share in self.shares(at).items():
            at.asked[name] = at.asked.get(name, 0.0) + share * length

    def shares(self, at: Position) -> dict[str, float]:
        """What each source that has tokens left should give, as shares of one."""
        weights = self.phases[at.phase].weights
        left = {n: w for n, w in weights.items() if w > 0 and self.room(n, at) > 0}
        total = sum(left.values())
        if not total:
            raise UserError(f"data.budgets: all are used up after {at.row:,} rows")
        return {name: weight / total for name, weight in left.items()}

    def room(self, name: str, at: Position) -> float:
        """How many tokens a source may still give."""
        return self.budgets.get(name, float("inf")) - at.taken.get(name, 0)

    def pick(self, at: Position) -> str:
        """The source whose deficit is largest; of equals the first."""
        shares = self.shares(at)
        given = sum(_of(at.phase_taken, name) for name in shares)
        return max(shares, key=lambda name: shares[name] * (given + 1) - _of(at.phase_taken, name))

    def take(self, at: Position, name: str, tokens: int) -> None:
        """Note that a source gave tokens."""
        for counts in (at.taken, at.phase_taken):
            counts[name] = _of(counts, name) + tokens


def _of(counts: Mapping[str, Any], name: str) -> Any:
    return counts.get(name, 0)
