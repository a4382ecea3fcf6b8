"""Wrong layouts give one line when the recipe is read, before any process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaseek.errors import UserError
from llamaseek.parallel.check import resolve
from llamaseek.recipe import make_recipe, save_recipe
from tests.cli.run import Cli
from tests.parallel.scenes import SIZES, recipe_of

WRONG: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    ("llama3", {"tensor": 8}, {}, ["parallel.tensor: 8", "key-value heads (4)"]),
    ("deepseek_v3", {"tensor": 3}, {}, ["parallel.tensor: 3", "attention heads (4)"]),
    ("deepseek_v3", {"data": 3, "expert": 3}, {"batch": 9}, ["parallel.expert: 3", "experts (8)"]),
    ("deepseek_v3", {"data": 2, "expert": 4}, {}, ["parallel.expert: 4", "data × shard (2)"]),
    ("deepseek_v3", {"shard": 4, "expert": 2}, {}, ["parallel.expert: 2", "parallel.shard (4)"]),
    ("llama3", {"data": 2, "expert": 2}, {}, ["parallel.expert: 2", "experts"]),
    ("llama3", {"data": 3}, {}, ["3", "train.batch (8)"]),
    ("llama3", {"pipeline": 7}, {}, ["7 stages", "4 layers"]),
    ("llama3", {"pipeline": 4, "schedule": "interleaved"}, {}, ["8 stages", "4 layers"]),
    ("llama3", {"pipeline": 4}, {"batch": 2}, ["parallel.pipeline: 4", "micro-batches", "2"]),
    ("llama3", {"pipeline": 2}, {"micro_batch": 3}, ["train.micro_batch: 3", "rows (8)"]),
    ("llama3", {"context": 3}, {}, ["context", "6", "data.length (32)"]),
    ("llama3", {"shard": 2, "zero": True}, {}, ["parallel.zero", "shard"]),
    ("llama3", {"offload": True}, {}, ["parallel.offload", "parallel.shard"]),
    ("llama3", {"last_layers": 1}, {}, ["parallel.last_layers: 1", "parallel.pipeline"]),
    ("deepseek_v3", {"pipeline": 2, "last_layers": 0}, {}, ["parallel.last_layers: 0", "1 to 3"]),
    ("deepseek_v3", {"data": 2, "expert": 2, "fp8_dispatch": True}, {}, ["fp8_dispatch", "128"]),
    ("llama3", {"data": 2, "tensor": 2}, {"neftune": 5.0}, ["parallel.tensor", "neftune"]),
]


@pytest.mark.parametrize(("family", "plan", "train", "words"), WRONG)
def test_a_wrong_layout_is_one_line(
    family: str, plan: dict[str, Any], train: dict[str, Any], words: list[str]
) -> None:
    made = recipe_of(family, plan, **{"micro_batch": 1, **train})
    with pytest.raises(UserError) as refused:
        resolve(made, None)
    message = str(refused.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("parallel.schedule=2f2b", ["parallel.schedule", "2f2b", "1f1b"]),
        ("parallel.shards=2", ["parallel.shards", "shard"]),
        ("parallel.data=0", ["parallel.data", "0"]),
        ("parallel.pipeline=9", ["9 stages", "4 layers"]),
    ],
)
def test_the_command_line_says_it(cli: Cli, tmp_path: Path, change: str, words: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(recipe_of("llama3", {}, out=str(tmp_path / "run")), path)
    done = cli("pretrain", str(path), change)
    assert done.code == 2 and done.err.count("\n") == 1
    assert all(word in done.err for word in words), done.err
    assert not (tmp_path / "run").exists()


def test_the_ranks_started_must_be_the_layout_s() -> None:
    with pytest.raises(UserError, match="data 2 × shard 2 makes 4 ranks, but 2 were started"):
        resolve(recipe_of("llama3", {"data": 2, "shard": 2}), 2)


@pytest.mark.parametrize("stage", ["grpo", "ppo", "reward"])
def test_stages_that_need_whole_weights_say_so(stage: str) -> None:
    model = {"config": SIZES["llama3"]}
    made = make_recipe({"name": "x", "stage": stage, "model": model, "parallel": {"tensor": 2}})
    with pytest.raises(UserError, match="parallel.tensor: above 1 is not for"):
        resolve(made, None)


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_auto_chooses_a_layout_that_runs(family: str, ranks: int) -> None:
    made = recipe_of(family, {}, device="cpu", micro_batch=None)
    made = make_recipe({**made.model_dump(), "parallel": "auto"})
    plan = resolve(made, ranks).parallel
    assert not plan.auto
    assert plan.data * plan.shard * plan.tensor * plan.pipeline * plan.context == ranks
