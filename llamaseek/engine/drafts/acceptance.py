"""How many drafts are worth their cost, by the share that stood earlier in the same answer.

Nothing here depends on time, so that a seed draws the same answer on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BELIEF = 2.0  # drafts that an estimate made before the first one counts as
WINDOW = 8.0  # drafts that count: what stood before them matters ever less
FORGET = 0.98  # of what counts against drafts that were not made, so that they are tried again


class Acceptance:
    """The shares of one answer's drafts that stood, by their kind.

    `expected` is each kind's share before any draft was made. `cost` is what one more draft takes,
    to make and to verify, as a share of a step without drafts.
    """

    def __init__(self, expected: Sequence[float], cost: float) -> None:
        self.expected, self.cost = expected, cost
        self.stood = [0.0] * len(expected)
        self.made = [0.0] * len(expected)
        self.kinds: list[int] = []  # of the latest drafts

    def share(self, kind: int) -> float:
        """The estimated share of drafts of this kind that stand where all before them do."""
        believed = BELIEF * self.expected[kind]
        return (self.stood[kind] + believed) / (self.made[kind] + BELIEF)

    def depth(self, kinds: Iterable[int]) -> int:
        """How many of these drafts, one after the other, give the most tokens for their cost."""
        tokens, chance = 1.0, 1.0
        self.kinds = []
        for kind in kinds:
            chance *= self.share(kind)
            if chance * (1 + self.cost * len(self.kinds)) <= self.cost * tokens:
                self._count(kind, FORGET, 0, 0)
                break
            tokens += chance
            self.kinds.append(kind)
        return len(self.kinds)

    def record(self, drafts: int, stood: int) -> None:
        """Of so many of the latest drafts the first ones stood, and the one after them did not."""
        for place, kind in enumerate(self.kinds[: min(drafts, stood + 1)]):
            kept = min(WINDOW / (self.made[kind] + 1), 1.0)
            self._count(kind, kept, int(place < stood), 1)

    def _count(self, kind: int, kept: float, stood: int, made: int) -> None:
        self.stood[kind] = kept * (self.stood[kind] + stood)
        self.made[kind] = kept * (self.made[kind] + made)
