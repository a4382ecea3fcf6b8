"""Loss on held-out rows, and bits per byte of held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamaseek.data.batch import Batch
from llamaseek.parallel.ranks import ParallelModel
from llamaseek.train.objectives import Term

if TYPE_CHECKING:
    from llamaseek.train.job import Job


class LossAccumulator:
    """Adds up terms; `counts` holds each term's count over the whole step."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts
        self.means: dict[str, Tensor] = {}
        self.logged: dict[str, str] = {}
        self.loss: Tensor | None = None

    def add(self, terms: list[Term]) -> Tensor:
        """The loss of one micro-batch, to be differentiated."""
        means = [term.sum / max(self.counts[term.name], 1) for term in terms]
        loss = torch.stack(
            [term.weight * mean for term, mean in zip(terms, means, strict=True) if term.weight]
        ).sum()
        for term, mean in zip(terms, means, strict=True):
            seen = self.means.get(term.name, zero_at(mean.device))
            self.means[term.name] = seen + mean.detach()
            self.logged[term.name] = term.logged
        seen = zero_at(loss.device) if self.loss is None else self.loss
        self.loss = seen + loss.detach()
        return loss

    def vector(self, ranks: ParallelModel) -> Tensor:
        """The whole run's loss, then the mean of each term in the order of `counts`, in float64 on
        the device.
        """
        zero = zero_at(ranks.device)
        loss = zero if self.loss is None else self.loss
        return ranks.counted(torch.stack([loss, *(self.means.get(n, zero) for n in self.counts)]))

    def totals(self, ranks: ParallelModel) -> tuple[float, dict[str, float]]:
        """The same as numbers: the loss, and each term's mean by name."""
        loss, *means = self.vector(ranks).tolist()
        return loss, dict(zip(self.counts, means, strict=True))


def zero_at(device: torch.device) -> Tensor:
    """0 in float64."""
    return torch.zeros((), dtype=torch.float64, device=device)


@torch.no_grad()
def evaluate(
    job: Job, ranks: ParallelModel, run: Callable[[Batch, LossAccumulator], None]
) -> dict[str, float]:
    """What the job is tested on: its held-out rows, which `run` adds to a tally, and its own
    examination of the model.
    """
    for part in ranks.parts:
        part.eval()
    scores = held_out_scores(job, ranks, run) if job.held_out is not None else {}
    if job.eval_fn is not None:
        scores |= {f"val_{name}": value for name, value in job.eval_fn(ranks.parts[0]).items()}
    for part in ranks.parts:
        part.train()
    return scores


def held_out_scores(
    job: Job, ranks: ParallelModel, run: Callable[[Batch, LossAccumulator], None]
) -> dict[str, float]:
    """`val_loss`, the weighted sum that a training step logs as `loss`; each term as
    `val_loss/NAME`; figures that are only watched as `val_NAME`; and `val_bits_per_byte`.

    Bits per byte come from the first term's sum over the bytes that the held-out text has; only
    plain text has them.
    """
    assert job.held_out is not None
    batch = job.objective.prepare(job.held_out, 0)
    counts = job.objective.counts(batch)
    tally = LossAccumulator(counts)
    run(batch, tally)
    loss, means = tally.totals(ranks)
    logged = ranks.from_last_stage(tally.logged)
    scores = {"val_loss": loss}
    scores |= {f"val_{name}": means[term] for term, name in logged.items()}
    if job.held_out_bytes:
        main = next(iter(logged))
        nats = means[main] * counts[main]
        scores["val_bits_per_byte"] = nats / math.log(2) / job.held_out_bytes
    return scores
