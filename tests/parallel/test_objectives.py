"""Every objective under the layouts it allows: loss, norm and held-out figures of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llamaseek.data.batch import IGNORE, Batch, Rows
from llamaseek.train.loop import Job, Trainer
from llamaseek.train.objectives.dpo import DPO
from llamaseek.train.objectives.masked import Masked
from llamaseek.train.objectives.next_token import NextToken
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import BATCH, LENGTH, VOCABULARY, job_of, recipe_of, rows

PLANS: list[dict[str, Any]] = [
    {"data": 2, "shard": 2},
    {"context": 2, "tensor": 2},
    {"pipeline": 2, "shard": 2},
]
EVERY, MORE = (), pytest.mark.parallel


def answers() -> Batch:
    """Rows of which only some later tokens are learnt, none in one row."""
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
    data, objective = {
        "answers": (answers(), NextToken(0.1)),
        "pairs": (pairs(), DPO(0.1, 0.2, 0.1)),
        "masked": (rows().batch, Masked(1, 3, VOCABULARY - 20, 0.0)),
    }[kind]
    held_out = data.select(slice(0, 5))  # divides over nothing
    trainer = Trainer(Job(made, job.model, job.tokenizer, objective, Rows(data, 1), held_out))
    scores = {k: v for k, v in trainer._evaluate().items() if "balance" not in k}
    line = trainer.step(0)
    names = ("margin", "grad_norm", "expert_load_max_over_mean")
    kept = {k: v for k, v in line.items() if k.startswith("loss") or k in names}
    return {**kept, **scores}


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(
            plan, id=" ".join(plan), marks=[] if "tensor" in plan else pytest.mark.parallel
        )
        for plan in PLANS
    ],
)
@pytest.mark.parametrize("kind", ["answers", "pairs", "masked"])
def test_an_objective_is_the_same_under_a_layout(kind: str, plan: dict[str, Any]) -> None:
    (wanted,) = on_ranks(1, step_of, kind, {})
    for figures in on_ranks(4, step_of, kind, plan):
        assert figures == pytest.approx(wanted, rel=1e-9)
