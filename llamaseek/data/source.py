"""What the training loop reads its batches from, and what a resumed run needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from llamaseek.data.batch import Batch


@dataclass(frozen=True)
class SourceState:
    """Where a source is: a position in its data as JSON, and tensors, both by name."""

    position: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Source(Protocol):
    """What the loop asks for a step's batch.

    A source that derives from it defines `length` and `step`. The rest answers for one whose
    batches are a function of the step alone: no state, no metrics, one corpus.
    """

    @property
    def length(self) -> int:
        """Tokens a row, at most."""
        ...

    @property
    def rows(self) -> int | None:
        """Rows of one epoch; None where a source has no epochs of rows."""
        return None

    def step(self, step: int, rows: int) -> Batch:
        """The rows of one training step (from 0)."""
        ...

    def state(self) -> SourceState:
        """What a resumed run needs to continue with the same bits."""
        return SourceState()

    def restore(self, state: SourceState) -> None:
        """Continue from what `state` returned."""
        return

    def metrics(self) -> dict[str, Any]:
        """Metrics of the latest batch, for its line in `metrics.jsonl`."""
        return {}

    def shares(self) -> dict[str, dict[str, float]]:
        """Of each corpus of a mix so far: its `tokens`, their `share`, the share `asked` for."""
        return {}


@dataclass(frozen=True)
class Rows(Source):
    """A packed data set in memory, and the order a run reads it in."""

    batch: Batch
    seed: int

    def __len__(self) -> int:
        return int(self.batch.tokens.shape[0])

    @property
    def length(self) -> int:
        """Tokens a row."""
        return int(self.batch.tokens.shape[1])

    @property
    def rows(self) -> int:
        """Packed rows of one epoch."""
        return len(self)

    def step(self, step: int, rows: int) -> Batch:
        """The rows of one training step, a function of seed and step alone.

        Every epoch is another shuffle; a step may end one epoch and begin the next.
        """
        first = step * rows
        epochs = range(first // len(self), (first + rows - 1) // len(self) + 1)
        order = torch.cat([self._order(epoch) for epoch in epochs])
        start = first - epochs.start * len(self)
        return self.batch.select(order[start : start + rows])

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self), generator=generator)
