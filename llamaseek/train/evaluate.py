"""Loss on held-out rows, and bits per byte of held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from llamaseek.data.batch import Batch
from llamaseek.parallel.ranks import Ranks
from llamaseek.train.tally import Tally

if TYPE_CHECKING:
    from llamaseek.train.loop import Job


@torch.no_grad()
def evaluate(job: Job, ranks: Ranks, run: Callable[[Batch, Tally], None]) -> dict[str, float]:
    """What the job is tested on: its held-out rows, which `run` adds to a tally, and its own
    examination of the model.
    """
    for part in ranks.parts:
        part.eval()
    scores = held_out_scores(job, ranks, run) if job.held_out is not None else {}
    if job.examine is not None:
        scores |= {f"val_{name}": value for name, value in job.examine(ranks.parts[0]).items()}
    for part in ranks.parts:
        part.train()
    return scores


def held_out_scores(
    job: Job, ranks: Ranks, run: Callable[[Batch, Tally], None]
) -> dict[str, float]:
    """`val_loss` in nats an item, each term as `val_loss/NAME`, and `val_bits_per_byte`.

    Bits per byte come from the first term's sum over the bytes that the held-out text has; only
    plain text has them. Figures that are only watched are `val_NAME`.
    """
    assert job.held_out is not None
    batch = job.objective.prepare(job.held_out, 0)
    counts = job.objective.counts(batch)
    tally = Tally(counts)
    run(batch, tally)
    _, means = tally.totals(ranks)
    logged = ranks.from_last_stage(tally.logged)
    main = next(iter(logged))
    scores = {"val_loss": means[main]}
    scores |= {f"val_{name}": means[term] for term, name in logged.items()}
    if job.held_out_bytes:
        nats = means[main] * counts[main]
        scores["val_bits_per_byte"] = nats / math.log(2) / job.held_out_bytes
    return scores
