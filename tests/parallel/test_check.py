"""Wrong layouts give one line when the recipe is read, before any process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from llamaseek.errors import UserError
from llamaseek.recipe.load import make_recipe, save_recipe
from llamaseek.runtime.check import resolve
from llamaseek.runtime.launch import process_group
from tests.cli.run import Cli
from tests.parallel.scenes import SIZES, recipe_of

WRONG: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    ("llama3", {"tensor": 8}, {}, ["parallel.tensor: 8", "key-value heads (4)"]),
    ("llama3", {"data": 16}, {}, ["16", "train.batch (8)"]),
    ("deepseek_v3", {"tensor": 3}, {}, ["parallel.tensor: 3", "attention heads (4)"]),
    ("deepseek_v3", {"data": 3, "expert": 3}, {"batch": 9}, ["parallel.expert: 3", "experts (8)"]),
    ("deepseek_v3", {"data": 2, "expert": 4}, {}, ["parallel.expert: 4", "data × shard (2)"]),
    ("deepseek_v3", {"shard": 4, "expert": 2}, {}, ["parallel.expert: 2", "parallel.shard (4)"]),
    ("llama3", {"data": 2, "expert": 2}, {}, ["parallel.expert: 2", "experts"]),
    ("llama3", {"data": 3}, {}, ["3", "train.batch (8)"]),
    ("llama3", {"pipeline": 7}, {}, ["7 stages", "4 layers", "embedding and head"]),
    ("llama3", {"pipeline": 4, "schedule": "interleaved"}, {}, ["8 stages", "4 layers"]),
    ("llama3", {"pipeline": 4}, {"batch": 2}, ["parallel.pipeline: 4", "micro-batches", "2"]),
    ("llama3", {"pipeline": 2}, {"micro_batch": 3}, ["train.micro_batch: 3", "rows (8)"]),
    ("llama3", {"context": 3}, {}, ["context", "6", "data.length (32)"]),
    ("llama3", {"shard": 2, "zero": True}, {}, ["parallel.zero", "shard"]),
    ("llama3", {"tensor": 2, "zero": True}, {}, ["parallel.zero", "parallel.data above 1"]),
    ("llama3", {"offload": True}, {}, ["parallel.offload", "parallel.shard"]),
    ("llama3", {"last_layers": 1}, {}, ["parallel.last_layers: 1", "parallel.pipeline"]),
    ("deepseek_v3", {"pipeline": 2, "last_layers": 0}, {}, ["parallel.last_layers: 0", "1 to 3"]),
    ("deepseek_v3", {"data": 2, "expert": 2, "fp8_dispatch": True}, {}, ["fp8_dispatch", "128"]),
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


SAMPLED = {"sampling": {"samples": 2}}
DISTILLED = {"distill": {"teacher": "folder"}}
STAGES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("grpo", {}, ["tensor", "pipeline", "context", "expert"]),
    ("ppo", {}, ["tensor", "pipeline", "context", "expert"]),
    ("sft", SAMPLED, ["tensor", "pipeline", "context", "expert"]),
    ("sft", DISTILLED, ["tensor", "context"]),
    ("sft", {"lora": {}}, ["tensor", "pipeline", "context", "expert"]),
    ("sft", {"lora": {"base": "nf4"}}, ["shard", "tensor", "pipeline", "context", "expert"]),
    ("sft", {}, []),
    ("dpo", {}, []),
    ("reward", {}, []),
    ("pretrain", {}, []),
]


@pytest.mark.parametrize(("stage", "sections", "refused"), STAGES)
@pytest.mark.parametrize("dim", ["data", "shard", "tensor", "pipeline", "context", "expert"])
def test_what_a_stage_cannot_be_combined_with(
    stage: str, sections: dict[str, Any], refused: list[str], dim: str
) -> None:
    plan = {"data": 2, "expert": 2} if dim == "expert" else {dim: 2}
    model = {"family": "deepseek_v3", "config": SIZES["deepseek_v3"]}
    made = make_recipe({"name": "x", "stage": stage, "model": model, "parallel": plan, **sections})
    if dim not in refused:
        resolve(made, None)
        return
    with pytest.raises(UserError, match=f"parallel.{dim}: above 1 is not for .*; allowed: "):
        resolve(made, None)


def test_more_ranks_than_gpus_are_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any group: nobody else is at the rendezvous."""
    path = tmp_path / "recipe.yaml"
    save_recipe(recipe_of("llama3", {"data": 4}, out=str(tmp_path / "run")), path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in (("RANK", "0"), ("LOCAL_WORLD_SIZE", "4"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    done = cli("pretrain", str(path))
    assert done.code == 2 and done.err.count("\n") == 1
    told = "4 ranks on this machine, but it has 2 GPUs; allowed: torchrun --nproc-per-node 2"
    assert told in done.err and not dist.is_initialized()
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_told_before_any_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = recipe_of("llama3", {"data": 2}, device="cuda")
    with pytest.raises(UserError, match="train.device: 'cuda'.*auto, cpu"), process_group(made):
        pass
    assert not dist.is_initialized()
