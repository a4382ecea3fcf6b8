"""Post-training from its recipe on several ranks, in float64: the answers, rewards, reference and
losses of one process.
"""

from __future__ import annotations

from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.recipe.load import make_recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Trainer
from llamaseek.train.saving.state import save_folder
from tests.parallel.launch import on_ranks
from tests.train.tiny import DEEPSEEK_SIZES, LLAMA_SIZES, tiny_tokenizer

STEPS = 4
SIZES = {"llama3": LLAMA_SIZES, "deepseek_v3": DEEPSEEK_SIZES}
STAGES: dict[str, dict[str, Any]] = {
    "grpo": {"grpo": {"beta": 0.04}, "rollout": {"minibatches": 2}},
    "ppo": {"rollout": {"epochs": 2}},
    "grpo of adapters": {"stage": "grpo", "grpo": {"beta": 0.04}, "lora": {"rank": 2}},
    "dpo": {"data": {"rows": {"preferences": 20}, "length": 400}},
}
CASES = [
    ("grpo", "llama3", {"shard": 2}),
    ("grpo", "deepseek_v3", {"data": 2}),
    ("grpo", "deepseek_v3", {"data": 2, "shard": 2}),
    ("ppo", "llama3", {"data": 2, "shard": 2}),
    ("ppo", "deepseek_v3", {"shard": 2, "reshard": False}),
    ("grpo of adapters", "llama3", {"shard": 2}),
    ("dpo", "llama3", {"shard": 2}),
    ("dpo", "deepseek_v3", {"pipeline": 2}),
]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained model of each family as a folder."""
    tokenizer, made = tiny_tokenizer(), {}
    for family, sizes in SIZES.items():
        torch.manual_seed(0)
        own: dict[str, Any] = {**sizes, "vocab_size": tokenizer.vocab_size}
        own["max_position_embeddings"] = 512  # pairs are up to 400 tokens long
        folder: Path = tmp_path_factory.mktemp(family)
        config = config_from_sizes(family, {**own, "initializer_range": 0.1})
        save_folder(folder, build_model(config), tokenizer)
        made[family] = str(folder)
    return made


def rolled(stage: str, start: str, plan: dict[str, Any]) -> list[dict[str, float]]:
    """The lines of a run, evaluations before and after it among them."""
    vowel = [{"kind": "regex", "pattern": "[aeiou]"}]
    rollout = {"samples": 2, "max_tokens": 5, "rewards": vowel, "eval_prompts": 3}
    sections = STAGES[stage]
    made = make_recipe(
        {
            "name": "tiny", "stage": stage, "model": {"init_from": start}, "parallel": plan,
            "data": {"rows": {"arithmetic": 12}, "length": 128},
            "train": {"steps": STEPS, "batch": 8, "micro_batch": 2, "warmup": 1, "lr": 1e-2,
                      "precision": "fp64"},
            **sections, "rollout": {**rollout, **sections.get("rollout", {})},
        }
    )  # fmt: skip
    trainer = Trainer(build_job(made))
    lines = [trainer._evaluate(), *(trainer.step(step) for step in range(STEPS))]
    lines.append(trainer._evaluate())
    others = ("tokens_per_second", "rollout_seconds", "expert_load")
    return [{k: v for k, v in line.items() if k not in others} for line in lines]


@cache
def alone(stage: str, start: str) -> list[dict[str, float]]:
    """What one process does."""
    lines: list[dict[str, float]] = on_ranks(1, rolled, stage, start, {})[0]
    return lines


@pytest.mark.parametrize(
    ("stage", "family", "plan"),
    [
        pytest.param(*case, marks=[] if place < 1 else pytest.mark.parallel)
        for place, case in enumerate(CASES)
    ],
)
def test_a_stage_is_one_process_s(
    stage: str, family: str, plan: dict[str, Any], starts: dict[str, str]
) -> None:
    wanted = alone(stage, starts[family])
    ranks = prod(plan.get(dim, 1) for dim in ("data", "shard", "pipeline"))
    for lines in on_ranks(ranks, rolled, stage, starts[family], plan):
        for ours, expected in zip(lines, wanted, strict=True):
            assert ours == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert any(line.get("grad_norm", 0) > 0 for line in wanted)
    if stage != "dpo":
        assert 0 < wanted[1]["reward"] < 1  # answers differ, and are judged
        assert "val_reward" in wanted[0] and "val_reward" in wanted[-1]
