"""Loss on held-out rows, and bits per byte of held-out text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from llamaseek.models import CausalLM
from llamaseek.recipe import TrainRecipe
from llamaseek.train.machine import autocast

if TYPE_CHECKING:
    from llamaseek.train.loop import Job


@torch.no_grad()
def evaluate(
    job: Job, model: CausalLM, recipe: TrainRecipe, device: torch.device
) -> dict[str, float]:
    """What the job is tested on: its held-out rows, and its own examination of the model."""
    model.eval()
    scores = held_out_scores(job, model, recipe, device) if job.held_out is not None else {}
    if job.examine is not None:
        scores |= {f"val_{name}": value for name, value in job.examine(model).items()}
    model.train()
    return scores


def held_out_scores(
    job: Job, model: CausalLM, recipe: TrainRecipe, device: torch.device
) -> dict[str, float]:
    """`val_loss` in nats an item, each term as `val_loss/NAME`, and `val_bits_per_byte`.

    Bits per byte come from the first term's sum over the bytes that the held-out text has; only
    plain text has them. Figures that are only watched are `val_NAME`.
    """
    assert job.held_out is not None
    batch = job.objective.prepare(job.held_out, 0)
    counts = job.objective.counts(batch)
    sums: dict[str, float] = {}
    names: dict[str, str] = {}
    for micro in batch.split(recipe.micro_batch or recipe.batch):
        with autocast(recipe, device):
            for term in job.objective.terms(model, micro.to(device)):
                sums[term.name] = sums.get(term.name, 0.0) + float(term.sum)
                names[term.name] = f"val_{term.logged}"
    main = next(iter(sums))
    scores = {"val_loss": sums[main] / max(counts[main], 1)}
    scores |= {names[name]: total / max(counts[name], 1) for name, total in sums.items()}
    if job.held_out_bytes:
        scores["val_bits_per_byte"] = sums[main] / math.log(2) / job.held_out_bytes
    return scores
