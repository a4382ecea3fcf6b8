"""`parallel: auto` is the planner's layout for the model, the GPU and the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaseek.errors import UserError
from llamaseek.herd.folder import find_or_read
from llamaseek.plan.gpus import found_gpu
from llamaseek.plan.planner import Planner
from llamaseek.plan.question import ask
from llamaseek.recipe.load import make_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.auto import gpu_of
from llamaseek.runtime.check import DEGREES, resolve
from tests.cli.run import Cli
from tests.parallel.scenes import recipe_of

NAME = "llama-3.1-8b"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither named nor there."""
    monkeypatch.delenv("LLAMASEEK_GPU", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def large(**train: Any) -> Recipe:
    """Llama 3.1 8B in rows of 8,192 tokens, 32 a step."""
    config = find_or_read(NAME).config.to_dict()
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "vocab_size")  # fmt: skip
    return make_recipe(
        {
            "name": "large", "stage": "pretrain", "parallel": {"auto": True, "timeout": 60},
            "model": {"family": "llama3", "config": {name: config[name] for name in kept}},
            "data": {"length": 8192},
            "train": {"batch": 32, "micro_batch": 1, "precision": "bf16", **train},
        }
    )  # fmt: skip


@pytest.mark.parametrize("gpu", ["h100", "mi300x"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("gpus", [8, 16])
def test_it_is_what_the_planner_says(
    gpu: str, checkpointing: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASEEK_GPU", gpu)
    question = ask(NAME, gpu, "pretrain", context=8192, batch=32, checkpointing=checkpointing)
    wanted = Planner(question).fastest(gpus)
    assert wanted is not None
    plan = resolve(large(checkpoint_activations=checkpointing), gpus).parallel
    assert {name: getattr(plan, name) for name in DEGREES} == wanted.to_dict()
    assert not plan.auto and plan.timeout == 60  # what else was said stays


def test_the_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    for gpu in ("h100", "mi300x"):
        monkeypatch.setenv("LLAMASEEK_GPU", gpu)
        plans.append(resolve(large(checkpoint_activations="none"), 8).parallel)
    # The smaller one cannot keep a row's activations whole; the larger one needs no tensor ranks.
    assert (plans[0].shard, plans[0].tensor) == (4, 2)
    assert (plans[1].shard, plans[1].tensor) == (8, 1)


@pytest.mark.parametrize(
    ("told", "name", "memory"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "h100-80gb", 80e9),
        ("NVIDIA A100-SXM4-40GB, 40960", "a100-80gb", 40960 * 2**20),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx4090-24gb", 24e9),
    ],
)
def test_a_gpu_is_found(
    told: str, name: str, memory: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, told, monkeypatch)
    gpu = gpu_of("auto", 1)
    assert (gpu.name, gpu.memory) == (name, memory)
    assert gpu_of("cpu", 1).name == "cpu"
    monkeypatch.setenv("LLAMASEEK_GPU", "b200")
    assert gpu_of("cuda", 1).name == "b200-180gb"


def driver(folder: Path, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `nvidia-smi` that says this."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{told}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_an_unknown_gpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, "NVIDIA T4, 15360", monkeypatch)
    with pytest.raises(UserError, match="NVIDIA T4 is not a known GPU; allowed: h100-80gb"):
        found_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="LLAMASEEK_GPU: names no GPU, and none was found"):
        gpu_of("cuda", 1)


def test_ranks_share_a_processor_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = gpu_of("auto", 1)
    assert gpu_of("auto", 4).memory == alone.memory / 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert gpu_of("auto", 4).memory == alone.memory / 2
    assert gpu_of("auto", 1).fp32 == alone.fp32  # measured by nobody: all ranks agree


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_it_runs_on_any_number_of_ranks(family: str, ranks: int) -> None:
    made = recipe_of(family, {}, device="cpu", micro_batch=None)
    made = make_recipe({**made.model_dump(), "parallel": "auto"})
    plan = resolve(made, ranks).parallel
    assert not plan.auto
    assert plan.data * plan.shard * plan.tensor * plan.pipeline * plan.context == ranks


def test_what_cannot_be_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMASEEK_GPU", "rtx4090")
    with pytest.raises(UserError, match="none fits 2 of NVIDIA GeForce RTX 4090"):
        resolve(large(), 2)
    both = ["parallel.auto=true", "parallel.tensor=2"]
    done = cli("pretrain", "tiny-shakespeare", "--dry-run", *both)
    assert done.code == 2 and done.err.count("\n") == 1
    assert "parallel.tensor" in done.err and "auto" in done.err
