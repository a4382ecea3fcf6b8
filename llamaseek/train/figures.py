"""What a step came to, read from its device when it is there: on a GPU, a step later.

The host never waits for a step it has just begun: while the GPU computes it, the figures of the
one before are read and the next batch is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamaseek.data.batch import Batch


class Arriving:
    """Numbers on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.to("cpu", non_blocking=True)
        self.there = torch.cuda.Event() if numbers.is_cuda else None
        if self.there is not None:
            self.there.record()

    def read(self) -> Tensor:
        """The numbers on the host, once they are there."""
        if self.there is not None:
            self.there.synchronize()
        return self.numbers


@dataclass
class StepFigures:
    """A step that was begun: `found` has the losses of `names`, the gradient norm and whether it is
    to stop, `loads` the tokens an expert (L, E), of the layers in `routed`.
    """

    step: int
    start: float  # by `time.perf_counter`
    batch: Batch
    rate: float
    names: list[str]
    found: Arriving
    loads: Arriving | None
    routed: list[int]
    data: dict[str, Any]  # metrics of what the batch was made of

    def expert_shares(self) -> dict[int, list[float]]:
        """Each expert's tokens over the mean of its layer, by layer; of those that ran."""
        if self.loads is None:
            return {}
        table = self.loads.read().float()
        shares = zip(self.routed, table / table.mean(1, keepdim=True), strict=True)
        return {layer: share.tolist() for layer, share in shares if not share.isnan().any()}

    def expert_metrics(self, whole: bool) -> dict[str, Any]:
        """How uneven the experts' loads were, and with `whole` each expert's load."""
        shares = self.expert_shares()
        if not shares:
            return {}
        metrics: dict[str, Any] = {
            "expert_load_max_over_mean": max(max(share) for share in shares.values())
        }
        if whole:
            metrics["expert_load"] = [[round(x, 4) for x in share] for share in shares.values()]
        return metrics

    def numbers(self) -> tuple[dict[str, float], float, bool]:
        """The loss and each term's mean by name, the gradient norm, and whether to stop."""
        *means, norm, stop = self.found.read().tolist()
        return dict(zip(self.names, means, strict=True)), norm, stop > 0


def is_finite(loss: Tensor, norm: Tensor) -> Tensor:
    """Whether a step counts, as a scalar on the device."""
    return loss.isfinite() & norm.isfinite()


def all_finite(*numbers: float) -> bool:
    """The same on the host."""
    return all(map(math.isfinite, numbers))
