"""Ranks that start from a folder in bf16, read a layer at a time: what one process makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamaseek.checkpoints.hf import save_model
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.recipe.load import make_recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Trainer
from llamaseek.train.saving.state import save_words
from tests.parallel.launch import on_ranks
from tests.train.tiny import DEEPSEEK_SIZES, LLAMA_SIZES, tiny_tokenizer

SIZES = {"llama3": LLAMA_SIZES, "deepseek_v3": DEEPSEEK_SIZES}
STEPS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An untrained model of each family, stored in bf16."""
    tokenizer, root = tiny_tokenizer(), tmp_path_factory.mktemp("starts")
    for family, sizes in SIZES.items():
        torch.manual_seed(0)
        own: dict[str, Any] = {**sizes, "vocab_size": tokenizer.vocab_size}
        config = config_from_sizes(family, {**own, "initializer_range": 0.1})
        save_model(build_model(config), root / family, torch.bfloat16)
        save_words(root / family, tokenizer)
    return lambda family: root / family


def tuned(start: str, plan: dict[str, Any], out: str) -> dict[str, Any]:
    """Losses and norms of a few steps, and in what the job's model came."""
    made = make_recipe(
        {
            "name": "tiny", "stage": "sft", "model": {"init_from": start}, "parallel": plan,
            "out": out, "data": {"rows": {"tasks": 40}, "length": 128},
            "train": {"steps": STEPS, "batch": 4, "micro_batch": 1, "warmup": 1, "lr": 1e-2,
                      "precision": "fp64"},
        }
    )  # fmt: skip
    job = build_job(made)
    came = {str(own.dtype) for own in job.model.parameters()}
    trainer = Trainer(job)
    held = {str(own.dtype) for own in trainer.ranks.own.values()}
    trainer._start(resume=False)
    trainer._save(1000, last=True)  # before a step: the folder's own numbers
    lines = [trainer.step(step) for step in range(STEPS)]
    figures = [line[name] for line in lines for name in ("loss", "grad_norm")]
    return {"figures": figures, "came": came, "held": held}


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        ("llama3", {"shard": 2}),
        ("deepseek_v3", {"shard": 2, "expert": 2}),
        *(
            pytest.param(*case, marks=pytest.mark.parallel)
            for case in (
                ("llama3", {"tensor": 2}),
                ("llama3", {"pipeline": 2}),
                ("deepseek_v3", {"tensor": 2}),
                ("deepseek_v3", {"pipeline": 2}),
            )
        ),
    ],
)
def test_ranks_start_as_one_process_does(
    family: str, plan: dict[str, Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    start = folders(family)
    alone = on_ranks(1, tuned, str(start), {}, str(tmp_path / "alone"))[0]
    assert alone["came"] == {"torch.float32"} and alone["held"] == {"torch.float64"}
    for rank in on_ranks(2, tuned, str(start), plan, str(tmp_path / "spread")):
        assert rank["came"] == {"torch.bfloat16"} and rank["held"] == {"torch.float64"}
        assert rank["figures"] == pytest.approx(alone["figures"], rel=1e-9)
    step = "checkpoints/step-1000/model.safetensors"
    wanted, found = load_file(tmp_path / "alone" / step), load_file(tmp_path / "spread" / step)
    stored = load_file(start / "model.safetensors")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert torch.equal(stored[name].to(tensor.dtype), tensor), name
