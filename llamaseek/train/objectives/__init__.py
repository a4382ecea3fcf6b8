"""Training objectives: each is one short file that names its loss terms and their counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM


@dataclass(frozen=True)
class Term:
    """One part of the loss: `weight × sum / count`, the count taken over the whole step.

    A term of weight 0 is a figure to watch.
    """

    name: str
    sum: Tensor
    weight: float = 1.0

    @property
    def logged(self) -> str:
        """Its name in the metrics: `loss/NAME`, or `NAME` where it is only watched."""
        return f"loss/{self.name}" if self.weight else self.name


class Objective(Protocol):
    """An objective of the loop. Counts are known before the forward, to split a step freely."""

    def prepare(self, batch: Batch, step: int) -> Batch:
        """The batch as the model sees it (masked LM corrupts it); a function of seed and step."""
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many items each term sums over in this batch."""
        ...

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """The loss terms of this batch, one for each name in `counts`."""
        ...

    def in_loss(self, batch: Batch) -> int:
        """How many tokens of the batch have a loss: with none, a step learns nothing."""
        return targets_counted(batch)


def targets_counted(batch: Batch) -> int:
    """Targets that have a loss."""
    return int((batch.targets != IGNORE).sum())
