"""Every objective under the layouts it allows: loss, norm and held-out figures of one process."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import pytest
import torch

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.source import Rows
from llamaseek.herd import config_from_sizes
from llamaseek.models import CausalLM, build_model
from llamaseek.models.score import reward_model
from llamaseek.recipe.post_training import DistillRecipe
from llamaseek.train.job import Job
from llamaseek.train.loop import Trainer
from llamaseek.train.objectives.distill import Distill
from llamaseek.train.objectives.dpo import DPO
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.next_token import NextToken
from llamaseek.train.objectives.reward import BradleyTerry
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import BATCH, LENGTH, LLAMA, VOCABULARY, job_of, recipe_of, rows

PLANS: list[dict[str, Any]] = [
    {"data": 2, "shard": 2},
    {"context": 2, "tensor": 2},
    {"pipeline": 2, "shard": 2},
    {"data": 2, "expert": 2},
]
KINDS = ("answers", "pairs", "masked", "rewards", "distill")
# Masked models are Llama's, which has no experts; a teacher is whole on each rank.
REFUSED = {("masked", "expert"), ("distill", "tensor")}
# What runs in every test run: all that context and tensor ranks can do, and one case more.
CHOSEN = {(kind, "tensor") for kind in KINDS} | {("distill", "pipeline")}


def answers() -> Batch:
    """Rows with only some later tokens in the loss, and none in one row."""
    batch = rows().batch
    late = torch.arange(LENGTH).expand_as(batch.targets) > LENGTH // 2
    targets = torch.where(late, batch.targets, IGNORE)
    targets[3] = IGNORE
    return Batch(batch.tokens, batch.positions, targets)


def pairs() -> Batch:
    """A chosen and a rejected answer in each row, and some padding, in rows of odd length."""
    length, rng = LENGTH - 3, torch.Generator().manual_seed(9)
    count, half = 3 * BATCH, (LENGTH - 6) // 2
    tokens = torch.randint(0, VOCABULARY, (count, length), generator=rng)
    place = torch.arange(length).expand(count, -1)
    sequence = (place // half).clamp(max=2)
    positions = torch.where(sequence < 2, place % half, 0)
    learnt = (place % half > 4) & (sequence < 2) & (place % half < half - 1)
    targets = torch.where(learnt, tokens.roll(-1, 1), IGNORE)
    extra = {
        "sequence": torch.where(sequence < 2, sequence, -1),
        "counts_for_preference": (learnt & (place % half < half - 2)).long(),
        "pairs": torch.ones(count, 1, dtype=torch.int64),
        "reference": -50 * torch.rand(count, 2, generator=rng).double(),
    }
    return Batch(tokens, positions, targets, extra)


def ranked() -> Batch:
    """Two or three answers a row, the best first, of which one row has one alone."""
    batch, rng = pairs(), torch.Generator().manual_seed(11)
    ends = torch.randint(1, LENGTH - 3, (len(batch.tokens), 3), generator=rng)
    ends[::2, 2] = -1
    ends[5, 1:] = -1
    return Batch(batch.tokens, batch.positions, batch.targets, {"ends": ends})


def teacher() -> CausalLM:
    """Another model of the same vocabulary, in float64."""
    torch.manual_seed(1)
    return build_model(config_from_sizes("llama3", LLAMA)).double()


def step_of(kind: str, plan: dict[str, Any]) -> dict[str, float]:
    """The first step's figures."""
    made = recipe_of("deepseek_v3", plan, objective="next_token", micro_batch=1)
    job = job_of(made)
    if kind == "masked":
        made = recipe_of("llama3", plan, objective="masked", micro_batch=1)
        job = job_of(made)
        for layer in job.model.model.layers:
            layer.self_attn.causal = False  # type: ignore[union-attr]
        job.model.config.__dict__["is_causal"] = False
    model = reward_model(job.model) if kind == "rewards" else job.model
    data, objective = {
        "answers": lambda: (answers(), NextToken(0.1)),
        "pairs": lambda: (pairs(), DPO(0.1, 0.2, 0.1)),
        "masked": lambda: (rows().batch, Masked(1, 3, VOCABULARY - 20, 0.0)),
        "rewards": lambda: (ranked(), BradleyTerry(0.1)),
        "distill": lambda: (answers(), Distill(teacher(), DistillRecipe(teacher=""), 0.1)),
    }[kind]()
    held_out = data.select(slice(0, 5))  # divides over nothing
    trainer = Trainer(Job(made, model, job.tokenizer, objective, Rows(data, 1), held_out))
    scores = trainer._evaluate()
    line = trainer.step(0)
    names = ("margin", "grad_norm", "expert_load_max_over_mean")
    kept = {k: v for k, v in line.items() if k.startswith("loss") or k in names}
    return {**kept, **scores}


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        pytest.param(
            *(kind, plan),
            id=f"{kind} {' '.join(plan)}",
            marks=[] if any((kind, dim) in CHOSEN for dim in plan) else pytest.mark.parallel,
        )
        for kind in KINDS
        for plan in PLANS
        if not any((kind, dim) in REFUSED for dim in plan)
    ],
)
def test_an_objective_is_the_same_under_a_layout(kind: str, plan: dict[str, Any]) -> None:
    wanted = alone(kind)
    world = prod(degree for dim, degree in plan.items() if dim != "expert")
    for figures in on_ranks(world, step_of, kind, plan):
        assert figures == pytest.approx(wanted, rel=1e-9)


@cache
def alone(kind: str) -> dict[str, float]:
    """What one process does."""
    figures: dict[str, float] = on_ranks(1, step_of, kind, {})[0]
    assert {"loss", "grad_norm", "val_loss"} <= figures.keys()
    return figures


def held_out_loss(plan: dict[str, Any], count: int) -> float:
    """The loss of `count` held-out rows."""
    job = job_of(recipe_of("llama3", plan, micro_batch=1))
    held_out = rows().batch.select(slice(0, count))
    trainer = Trainer(
        Job(job.recipe, job.model, job.tokenizer, job.objective, job.source, held_out)
    )
    return trainer._evaluate()["val_loss"]


@pytest.mark.parametrize(
    ("schedule", "count"),
    [("interleaved", 5), pytest.param("1f1b", 1, marks=pytest.mark.parallel)],
)
def test_a_pipeline_evaluates_any_number_of_rows(schedule: str, count: int) -> None:
    wanted = on_ranks(1, held_out_loss, {}, count)[0]
    plan = {"pipeline": 2, "schedule": schedule}
    for loss in on_ranks(2, held_out_loss, plan, count):
        assert loss == pytest.approx(wanted, rel=1e-10)
