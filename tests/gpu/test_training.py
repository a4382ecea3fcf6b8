"""Training steps on a GPU beside the same on the CPU; without one, the CPU beside itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.data.source import Rows
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.recipe.load import make_recipe
from llamaseek.train.job import Job
from llamaseek.train.loop import Trainer
from llamaseek.train.objectives.choose import make_objective
from tests.gpu.counts import OBJECTIVE, packed
from tests.train.tiny import DEEPSEEK_SIZES, LLAMA_SIZES, tiny_tokenizer

HERE = "cuda" if torch.cuda.is_available() else "cpu"
WIDE = {"hidden_size": 128, "vocab_size": 512, "initializer_range": 0.1}
HEADS = {"qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "kv_lora_rank": 32}
SIZES = {"llama3": LLAMA_SIZES | WIDE, "deepseek_v3": DEEPSEEK_SIZES | WIDE | HEADS}
STEPS = 3


def lines(family: str, device: str, apart: bool, out: Path, **train: Any) -> list[dict[str, Any]]:
    """The metrics of some steps."""
    settings = {
        "device": device, "precision": "bf16", "batch": 4, "micro_batch": 2, "steps": 20,
        "warmup": 1, "objective": OBJECTIVE[family], "compile": False, **train,
    }  # fmt: skip
    recipe = make_recipe({"name": "g", "stage": "pretrain", "out": str(out), "train": settings})
    torch.manual_seed(0)
    config = config_from_sizes(family, SIZES[family])
    model = build_model(config)
    batch = packed(4, 128, config.vocab_size)
    if not apart:
        batch.positions.copy_(torch.arange(128).expand(4, 128))
    objective = make_objective(recipe, model, tiny_tokenizer())
    trainer = Trainer(Job(recipe, model, tiny_tokenizer(), objective, Rows(batch, 0)))
    return [trainer.step(step) for step in range(STEPS)]


@pytest.mark.parametrize("how", ["eager", "compiled", "recomputed"])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("family", list(SIZES))
def test_steps_are_those_of_a_cpu(family: str, apart: bool, how: str, tmp_path: Path) -> None:
    if how == "compiled" and HERE == "cpu":
        pytest.skip("compiling for a CPU takes a minute; other tests do")
    train: dict[str, Any] = {
        "eager": {},
        "compiled": {"compile": True},
        "recomputed": {"checkpoint_activations": "selective"},
    }[how]
    found = lines(family, HERE, apart, tmp_path / "a", **train)
    wanted = lines(family, "cpu", apart, tmp_path / "b")
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(HERE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("family", list(SIZES))
def test_deterministic_steps_are_the_same_twice(family: str, tmp_path: Path) -> None:
    runs = [lines(family, HERE, True, tmp_path / name, deterministic=True) for name in "ab"]
    assert [line["loss"] for line in runs[0]] == [line["loss"] for line in runs[1]]
