"""Where the loop's batches come from: rows at hand, a mix of corpora, answers the model samples."""

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


@runtime_checkable
class Mixed(Protocol):
    """A source drawn from several corpora: a place in them to keep, and ratios to report."""

    def shares(self) -> dict[str, dict[str, float]]:
        """Of each corpus so far: tokens, its share of them, the share asked for."""
        ...

    def state(self) -> dict[str, Any]:
        """Where the next step begins, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        ...


def told(source: Source) -> list[str]:
    """One line with what each of several corpora gave, beside what was asked of it."""
    shares = source.shares() if isinstance(source, Mixed) else {}
    if len(shares) < 2:
        return []
    parts = (f"{name} {s['share']:.2%} ({s['asked']:.2%})" for name, s in shares.items())
    return [f"mix of tokens (asked): {', '.join(parts)}"]
