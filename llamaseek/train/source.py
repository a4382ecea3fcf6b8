"""Where the loop's batches come from: rows at hand, or answers sampled from the model itself."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from llamaseek.data.batch import Batch


class Source(Protocol):
    """What the loop asks for a step's batch."""

    @property
    def length(self) -> int:
        """Tokens a row, at most."""
        ...

    def step(self, step: int, rows: int) -> Batch:
        """The rows of one training step (from 0)."""
        ...


@runtime_checkable
class Sampled(Protocol):
    """A source whose batches depend on the model: it has figures to watch, and a state to keep."""

    def metrics(self) -> dict[str, Any]:
        """Figures of the latest batch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on with the same bits."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...
