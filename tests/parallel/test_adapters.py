"""Adapters on a sharded base: losses, folders and resumed runs of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.data.source import Rows
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.models.score import reward_model
from llamaseek.recipe.post_training import LoraRecipe
from llamaseek.train.job import Job
from llamaseek.train.loop import train
from llamaseek.train.objectives.next_token import NextToken
from llamaseek.train.objectives.reward import BradleyTerry
from llamaseek.train.start import adapt_model
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import SIZES, job_of, recipe_of, rows
from tests.parallel.test_objectives import ranked

STEPS, SAVED = 6, 3
LORA = LoraRecipe(rank=2)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an untrained model of each family."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    for family, sizes in SIZES.items():
        save_model(build_model(config_from_sizes(family, sizes)), folder / family)
    return lambda family: folder / family


def run(kind: str, base: str, plan: dict[str, Any], out: str, resume: bool, **more: Any) -> None:
    """Adapters trained on the model of a folder, as `sft` or `reward` would."""
    family = Path(base).name
    settings = {"steps": STEPS, "save_every": SAVED, "ema": 0.5, **more}
    plain = job_of(recipe_of(family, plan, out, objective="next_token", **settings))
    start = plain.recipe.model.model_copy(update={"init_from": base})
    recipe = plain.recipe.model_copy(update={"model": start, "lora": LORA})
    model = load_model(base)
    adapt_model(model, LORA, seed=1)
    if kind == "reward":
        torch.manual_seed(2)
        data, scorer = Rows(ranked(), 1), reward_model(model)
        job = Job(recipe, scorer, plain.tokenizer, BradleyTerry(0.1), data)
    else:
        job = Job(recipe, model, plain.tokenizer, NextToken(0.1), rows())
    train(job, resume)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def alike(ours: Path, theirs: Path) -> None:
    """The same tensors, to float32's rounding of numbers that float64 has computed."""
    found, wanted = load_file(ours), load_file(theirs)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("kind", "family", "plan"),
    [
        ("rows", "llama3", {"shard": 2}),
        pytest.param("rows", "deepseek_v3", {"shard": 2}, marks=pytest.mark.parallel),
        pytest.param("rows", "llama3", {"data": 2, "shard": 2}, marks=pytest.mark.parallel),
        pytest.param("reward", "llama3", {"shard": 2}, marks=pytest.mark.parallel),
    ],
)
def test_adapters_on_a_sharded_base_are_those_of_one_process(
    kind: str, family: str, plan: dict[str, Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base, alone, spread = str(bases(family)), tmp_path / "alone", tmp_path / "spread"
    on_ranks(1, run, kind, base, {}, str(alone), False)
    on_ranks(2 * plan.get("data", 1), run, kind, base, plan, str(spread), False)
    assert losses(spread) == pytest.approx(losses(alone), rel=1e-10)
    assert losses(alone)[-1] != pytest.approx(losses(alone)[0], rel=1e-3)
    for made in ("adapter/adapter_model", "model/model"):
        alike(spread / f"{made}.safetensors", alone / f"{made}.safetensors")
    for made in ("adapter/adapter_config.json", "model/config.json"):
        assert (spread / made).read_text() == (alone / made).read_text()
    step = f"checkpoints/step-{SAVED}/adapter_model.safetensors"
    alike(spread / step, alone / step)
    load_model(spread / "model")


def test_a_sharded_run_of_adapters_goes_on_as_one_process(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base, folder = str(bases("llama3")), tmp_path / "run"
    on_ranks(2, run, "rows", base, {"shard": 2}, str(folder), False)
    whole, final = losses(folder), load_file(folder / "adapter" / "adapter_model.safetensors")
    (folder / "checkpoints" / f"step-{STEPS}").rename(tmp_path / "last")
    begun = (folder / "checkpoints" / f"step-{SAVED}" / "state" / "progress.json").stat()
    on_ranks(1, run, "rows", base, {}, str(folder), True)
    assert losses(folder) == pytest.approx(whole, rel=1e-10)
    kept = (folder / "checkpoints" / f"step-{SAVED}" / "state" / "progress.json").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (begun.st_ino, begun.st_mtime_ns)  # not begun anew
    again = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name in final:
        torch.testing.assert_close(again[name], final[name], rtol=1e-6, atol=1e-7)
