"""Every layout trains as one process does: losses, norms, loads and gradients, in float64.

float64 keeps rounding from choosing other experts: the smallest margin by which a router chose is
asserted to be far above it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.parallel.launch import on_ranks
from tests.parallel.scenes import train_steps

STEPS = 20
ALONE: dict[str, dict[str, Any]] = {
    "replicas": {"data": 2},
    "zero": {"data": 2, "zero": True},
    "shard": {"shard": 2},
    "shard kept": {"shard": 2, "reshard": False},
    "tensor": {"tensor": 2},
    "context": {"context": 2},
    "pipeline": {"pipeline": 2},
    "pipeline of 3": {"pipeline": 3},
    "interleaved": {"pipeline": 2, "schedule": "interleaved"},
    "zero bubble": {"pipeline": 2, "schedule": "zero_bubble"},
    # Six stages of four layers: the first holds the embedding alone, the last the head.
    "a layer a stage": {"pipeline": 2, "schedule": "interleaved", "stages_per_rank": 3},
    "expert": {"data": 2, "expert": 2},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "hybrid": {"data": 2, "shard": 2},
    "shard tensor": {"shard": 2, "tensor": 2},
    "context tensor": {"context": 2, "tensor": 2},
    "pipeline shard": {"pipeline": 2, "shard": 2},
    "pipeline context": {"pipeline": 2, "context": 2},
    "shard expert": {"shard": 2, "expert": 2},
    "data shard expert": {"data": 2, "shard": 2, "expert": 4},
    "data expert tensor": {"data": 2, "expert": 2, "tensor": 2},
    "zero expert": {"data": 2, "expert": 2, "zero": True},
    "zero tensor": {"data": 2, "tensor": 2, "zero": True},
    "zero pipeline expert": {"pipeline": 2, "data": 2, "expert": 2, "zero": True},
    "pipeline shard tensor": {"pipeline": 2, "shard": 2, "tensor": 2},
    "data context tensor": {"data": 2, "context": 2, "tensor": 2},
    "interleaved shard expert": {
        "pipeline": 2,
        "shard": 2,
        "expert": 2,
        "schedule": "interleaved",
    },  # fmt: skip
    "zero bubble shard": {"pipeline": 2, "shard": 2, "schedule": "zero_bubble"},
    "pipeline shard context": {"pipeline": 2, "shard": 2, "context": 2},
    "pipeline data expert tensor": {"pipeline": 2, "data": 2, "expert": 2, "tensor": 2},
    "pipeline shard expert context": {"pipeline": 2, "shard": 2, "expert": 2, "context": 2},
}
PLANS = ALONE | TOGETHER
CASES = [
    (family, name)
    for family in ("llama3", "deepseek_v3")
    for name, plan in PLANS.items()
    if ("expert" not in plan if family == "llama3" else "stages_per_rank" not in plan)
]
# What runs in every test run; `make test-parallel` runs all.
CHOSEN = {
    ("llama3", "replicas"),
    ("llama3", "tensor"),
    ("llama3", "pipeline of 3"),
    ("llama3", "context"),
    ("llama3", "shard tensor"),
    ("llama3", "pipeline shard"),
    ("llama3", "a layer a stage"),
    ("deepseek_v3", "zero expert"),
    ("deepseek_v3", "zero bubble"),
    ("deepseek_v3", "shard expert"),
    ("deepseek_v3", "context tensor"),
    ("deepseek_v3", "data expert tensor"),
    ("deepseek_v3", "pipeline shard tensor"),
}


@cache
def alone(family: str) -> dict[str, Any]:
    """What one process does."""
    result: dict[str, Any] = on_ranks(1, train_steps, family, {}, STEPS)[0]
    return result


def world(plan: dict[str, Any]) -> int:
    """The ranks a plan needs."""
    dims = ("data", "shard", "tensor", "pipeline", "context")
    return int(np.prod([plan.get(dim, 1) for dim in dims]))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*case, marks=[] if case in CHOSEN else pytest.mark.parallel, id=" ".join(case))
        for case in CASES
    ],
)
def test_a_layout_trains_as_one_process_does(family: str, name: str) -> None:
    plan, expected = PLANS[name], alone(family)
    ranks = on_ranks(world(plan), train_steps, family, plan, STEPS)
    for rank in ranks:
        for ours, wanted in zip(rank["lines"], expected["lines"], strict=True):
            assert ours == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    compare_gradients([rank["gradients"] for rank in ranks], expected["gradients"])
    margins = [r["margin"] for r in [*ranks, expected] if r["margin"] is not None]
    assert all(margin > 1e-8 for margin in margins)
    assert bool(margins) == (family == "deepseek_v3")


def compare_gradients(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Every weight's gradient was made on some rank, and all that were made are right."""
    seen: set[str] = set()
    for gradients in found:
        for name, gradient in gradients.items():
            scale = np.abs(expected[name]).max()
            assert np.abs(gradient - expected[name]).max() <= 1e-10 * max(scale, 1e-6), name
            seen.add(name)
    assert seen == set(expected)


def test_losses_fall_and_biases_move() -> None:
    for family in ("llama3", "deepseek_v3"):
        lines = alone(family)["lines"]
        assert lines[-1]["loss"] < lines[0]["loss"] - 0.2


RECOMPUTED = [
    ({"shard": 2, "tensor": 2}, "selective"),
    ({"pipeline": 2, "context": 2}, "selective"),
    ({"data": 2, "expert": 2}, "selective"),
    pytest.param({"shard": 2, "tensor": 2}, "full", marks=pytest.mark.parallel),
    pytest.param({"pipeline": 2, "last_layers": 1}, "full", marks=pytest.mark.parallel),
]


@pytest.mark.parametrize(("plan", "kept"), RECOMPUTED)
def test_recomputing_changes_nothing_under_a_layout(plan: dict[str, int], kept: str) -> None:
    changes = {"checkpoint_activations": kept, "micro_batch": 1}
    ranks = on_ranks(world(plan), recomputed, plan, changes)
    expected = alone("deepseek_v3")["lines"][:2]
    for lines in ranks:
        for ours, wanted in zip(lines, expected, strict=True):
            assert ours == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def recomputed(plan: dict[str, int], changes: dict[str, Any]) -> list[dict[str, float]]:
    """Two steps' lines."""
    lines: list[dict[str, float]] = train_steps("deepseek_v3", plan, 2, **changes)["lines"]
    return lines


def test_sharded_sums_work_in_the_precision_users_train_in() -> None:
    ranks = on_ranks(2, in_float32, {"shard": 2})
    (wanted,) = on_ranks(1, in_float32, {})
    for losses in ranks:
        assert losses == pytest.approx(wanted, rel=1e-5)


def in_float32(plan: dict[str, Any]) -> list[float]:
    """Losses of three steps."""
    lines = train_steps("llama3", plan, 3, precision="fp32")["lines"]
    return [line["loss"] for line in lines]
