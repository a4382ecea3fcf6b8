"""What FSDP2 does beside sharding: offloading, bf16, compiled and recomputed layers, beside one
process.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from llamaseek.models.layers import RMSNorm
from llamaseek.train.loop import Trainer
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import job_of, recipe_of

STEPS = 3
SHARDED: dict[str, Any] = {"shard": 2}


def trained(family: str, plan: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """Losses and norms of a few steps; dtypes that products see, and that the optimizer keeps."""
    trainer = Trainer(job_of(recipe_of(family, plan, **train)))
    seen: set[str] = set()
    norm = next(m for m in trainer.ranks.parts[0].modules() if isinstance(m, RMSNorm))
    norm.register_forward_pre_hook(lambda module, args: seen.add(str(module.weight.dtype)))
    lines = [trainer.step(step) for step in range(STEPS)]
    held = {str(weight.dtype) for weight in trainer.ranks.own.values()}
    figures = [line[name] for line in lines for name in ("loss", "grad_norm")]
    return {"figures": figures, "gathered": seen, "held": held}


@cache
def alone(family: str, precision: str) -> list[float]:
    """One process, plain."""
    figures: list[float] = on_ranks(1, trained, family, {}, {"precision": precision})[0]["figures"]
    return figures


@pytest.mark.parametrize(
    "plan",
    [SHARDED, pytest.param({"data": 2, "shard": 2, "reshard": False}, marks=pytest.mark.parallel)],
)
def test_offloaded_weights_train_as_others_do(plan: dict[str, Any]) -> None:
    plan = {**plan, "offload": True}
    ranks = on_ranks(2 * plan.get("data", 1), trained, "llama3", plan, {"precision": "fp64"})
    for rank in ranks:
        assert rank["figures"] == pytest.approx(alone("llama3", "fp64"), rel=1e-10)


@pytest.mark.parametrize(
    "family", [pytest.param("llama3", marks=pytest.mark.parallel), "deepseek_v3"]
)
def test_bf16_is_gathered_and_float32_is_kept(family: str) -> None:
    ranks = on_ranks(2, trained, family, SHARDED, {"precision": "bf16"})
    wide = alone(family, "fp32")
    for rank in ranks:
        assert rank["gathered"] == {"torch.bfloat16"} and rank["held"] == {"torch.float32"}
        # Within the format's 2^-8: losses, and the first norm. Later norms are of weights that
        # AdamW and the choice of experts have moved apart: two roundings differ by 3% there.
        ours = rank["figures"]
        for one in (alone(family, "bf16"), wide):
            assert ours[1] == pytest.approx(one[1], rel=2**-8)
            assert ours[::2] == pytest.approx(one[::2], rel=2**-8)
        assert ours != pytest.approx(wide, rel=1e-6)


@pytest.mark.parametrize(
    ("family", "schedule"),
    [
        pytest.param("llama3", "1f1b", marks=pytest.mark.parallel),
        ("deepseek_v3", "1f1b"),
        pytest.param("llama3", "interleaved", marks=pytest.mark.parallel),
    ],
)
def test_every_stage_of_a_pipeline_runs_in_bf16(family: str, schedule: str) -> None:
    plan = {"pipeline": 2, "schedule": schedule}
    wide, alike = alone(family, "fp32"), alone(family, "bf16")
    for rank in on_ranks(2, trained, family, plan, {"precision": "bf16"}):
        assert rank["held"] == {"torch.float32"}
        ours = rank["figures"]
        assert ours[1] == pytest.approx(alike[1], rel=2**-8)
        assert ours[::2] == pytest.approx(alike[::2], rel=2**-8)
        assert ours != pytest.approx(wide, rel=1e-6)


@pytest.mark.parallel
@pytest.mark.parametrize("plan", [SHARDED, {"tensor": 2}, {"pipeline": 2}, {"context": 2}])
def test_compiled_layers_train_as_others_do(plan: dict[str, Any]) -> None:
    compiled = {"precision": "fp32", "compile": True}
    for rank in on_ranks(2, trained, "llama3", plan, compiled, seconds=900):
        assert rank["figures"] == pytest.approx(alone("llama3", "fp32"), rel=1e-5)


@pytest.mark.parallel
def test_selective_recomputation_changes_no_bit_of_a_sharded_run() -> None:
    kept = on_ranks(2, trained, "llama3", SHARDED, {"precision": "fp32"})
    selective = {"precision": "fp32", "checkpoint_activations": "selective"}
    for plain, again in zip(kept, on_ranks(2, trained, "llama3", SHARDED, selective), strict=True):
        assert again["figures"] == plain["figures"]
    assert torch.tensor(kept[0]["figures"]).isfinite().all()
