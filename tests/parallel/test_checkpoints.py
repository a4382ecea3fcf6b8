"""Saved under one layout, resumed under any other: the same losses, the same bits in the folder."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter

from llamaseek.data.batch import Batch
from llamaseek.errors import UserError
from llamaseek.train.job import Interrupted, Job
from llamaseek.train.loop import Trainer, train
from tests.parallel.launch import on_ranks
from tests.parallel.scenes import job_of, recipe_of

STEPS, SAVED = 8, 4
FIRST = {"data": 2, "tensor": 2}
LATER: list[tuple[str, dict[str, Any]]] = [
    ("llama3", {"data": 4}),
    ("llama3", {"pipeline": 2}),
    ("llama3", {}),
    ("deepseek_v3", {"data": 4, "zero": True}),
    ("deepseek_v3", {"pipeline": 2}),
    ("deepseek_v3", {"data": 2, "expert": 2, "zero": True}),
    ("deepseek_v3", {"shard": 2, "expert": 2, "tensor": 2}),
    ("deepseek_v3", {}),
]


def recipe_in(folder: str, family: str, plan: dict[str, Any], **changes: Any) -> Any:
    settings = {"steps": STEPS, "save_every": SAVED, "keep": 9, "ema": 0.9, **changes}
    return recipe_of(family, plan, folder, **settings)


def whole_run(family: str, folder: str) -> list[str]:
    """The token stream, a digest a step."""
    job = job_of(recipe_in(folder, family, FIRST))
    seen = stream(job)
    train(job)
    return seen


def resumed(family: str, plan: dict[str, Any], folder: str) -> tuple[list[float], list[str]]:
    """Losses and tokens after the checkpoint; what was loaded is saved again as step 1000."""
    job = job_of(recipe_in(folder, family, plan))
    seen, trainer = stream(job), Trainer(job)
    done = trainer._start(resume=True)
    trainer._save(1000, last=True)
    return [trainer.step(step)["loss"] for step in range(done, STEPS)], seen


def stream(job: Job) -> list[str]:
    """Digests of the tokens that each step of a job trains on, as it does."""
    seen: list[str] = []
    prepare = job.objective.prepare

    def watched(batch: Batch, step: int) -> Batch:
        seen.append(blake2b(batch.tokens.numpy().tobytes()).hexdigest())
        return prepare(batch, step)

    job.objective.prepare = watched  # type: ignore[method-assign]
    return seen


@pytest.fixture(scope="module", params=["llama3", "deepseek_v3"])
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run's folder, and its token stream."""
    folder = tmp_path_factory.mktemp(request.param)
    tokens, *others = on_ranks(4, whole_run, request.param, str(folder))
    assert len(set(tokens)) == STEPS and all(other == tokens for other in others)
    return request.param, folder, tokens


def test_any_layout_goes_on_from_any_other(
    first: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    family, folder, tokens = first
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [line["loss"] for line in lines if "loss" in line][SAVED:]
    saved = load_file(folder / "checkpoints" / f"step-{SAVED}" / "model.safetensors")
    for number, plan in enumerate(plan for name, plan in LATER if name == family):
        again = tmp_path / str(number)
        shutil.copytree(folder, again)
        shutil.rmtree(again / "checkpoints" / f"step-{STEPS}")
        world = max(1, 2 ** sum(plan.get(d, 1) > 1 for d in ("shard", "tensor", "pipeline")))
        ranks = on_ranks(world * plan.get("data", 1), resumed, family, plan, str(again))
        for losses, seen in ranks:
            assert losses == pytest.approx(expected, rel=1e-10)
            assert seen == tokens[SAVED:]
        exported = load_file(again / "checkpoints" / "step-1000" / "model.safetensors")
        assert exported.keys() == saved.keys()
        assert all(torch.equal(saved[name], exported[name]) for name in saved), plan


def test_the_final_model_is_the_average(first: tuple[str, Path, list[str]]) -> None:
    family, folder, _ = first
    last = load_file(folder / "checkpoints" / f"step-{STEPS}" / "model.safetensors")
    final = load_file(folder / "model" / "model.safetensors")
    assert final.keys() == last.keys()
    assert any(not torch.equal(final[name], last[name]) for name in last)
    assert (folder / "model" / "tokenizer.json").is_file()
    bias = [name for name in last if name.endswith("e_score_correction_bias")]
    assert bool(bias) == (family == "deepseek_v3")
    assert all(last[name].dtype == torch.float32 and last[name].any() for name in bias)


def background(folder: str) -> None:
    made = recipe_in(folder, "llama3", {"shard": 2}, save_in_background=True, save_every=2)
    train(job_of(made))


def test_a_checkpoint_written_in_the_background_holds_its_own_step(tmp_path: Path) -> None:
    on_ranks(2, background, str(tmp_path / "a"))
    made = recipe_in(str(tmp_path / "b"), "llama3", {}, save_every=2)
    train(job_of(made))
    for step in (2, 4, 6, 8):
        ours, wanted = (
            load_file(tmp_path / run / "checkpoints" / f"step-{step}" / "model.safetensors")
            for run in ("a", "b")
        )
        for name in wanted:
            torch.testing.assert_close(ours[name], wanted[name], rtol=1e-9, atol=1e-12)


def full_disk(folder: str, from_rank: int) -> Any:
    """The disk of one rank is full when step 2 is saved; later it is not."""
    write, fails = FileSystemWriter.write_data, [dist.get_rank() == from_rank]

    def writes(self: Any, *args: Any) -> Any:
        if fails and fails.pop():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args)

    FileSystemWriter.write_data = writes  # type: ignore[method-assign]
    trainer = Trainer(job_of(recipe_in(folder, "llama3", {"data": 2}, save_every=2)))
    trainer.run(resume=False, on_step=None)
    return trainer.saver.failed


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_costs_a_checkpoint_not_the_run(rank: int, tmp_path: Path) -> None:
    assert on_ranks(2, full_disk, str(tmp_path), rank) == [1, 1]
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step-4", "step-6", "step-8"]
    assert (tmp_path / "model" / "model.safetensors").is_file()


def not_finite(folder: str, steps: list[int], limit: int) -> Any:
    """One rank's loss is not a number at some steps."""
    job = job_of(recipe_in(folder, "deepseek_v3", {"data": 2}, max_skipped=limit))
    terms, seen = job.objective.terms, [-1]

    def poisoned(model: Any, batch: Any) -> Any:
        found = terms(model, batch)
        if dist.get_rank() == 1 and seen[0] in steps:
            found[0].sum.data.fill_(float("nan"))
        return found

    job.objective.terms = poisoned  # type: ignore[method-assign]
    begin = Trainer.begin

    def counting(self: Trainer, number: int) -> Any:
        seen[0] = number
        return begin(self, number)

    Trainer.begin = counting  # type: ignore[method-assign]
    try:
        train(job)
    except UserError as stopped:
        return str(stopped)
    return None


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    assert on_ranks(2, not_finite, str(tmp_path), [3], 2) == [None, None]
    kept = load_file(tmp_path / "skipped" / "step-4.safetensors")
    assert kept["tokens"].shape == (8, 32)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped_steps") == 1] == [4]
    assert all(line["loss"] == line["loss"] for line in lines if line.get("step") != 4)


def test_too_many_of_them_stop_the_run(tmp_path: Path) -> None:
    told = on_ranks(2, not_finite, str(tmp_path), [2, 3, 4], 2)
    for message in told:
        assert "step 4" in message and "train.max_skipped" in message
        assert str(tmp_path / "skipped" / "step-4.safetensors") in message


def stopped(folder: str) -> int:
    """A signal that reaches one rank stops all of them, after a checkpoint."""

    def stop(step: int) -> None:
        if step == 2 and dist.get_rank() == 1:
            signal.raise_signal(signal.SIGTERM)

    try:
        train(job_of(recipe_in(folder, "llama3", {"shard": 2})), on_step=stop)
    except Interrupted as interrupted:
        return interrupted.step
    return -1


def test_one_rank_s_stop_signal_saves_on_all(tmp_path: Path) -> None:
    assert on_ranks(2, stopped, str(tmp_path)) == [3, 3]
    assert (tmp_path / "checkpoints" / "step-3" / "model.safetensors").is_file()
