"""The loop: accumulation, resume after kills at any moment, stop signals, schedules."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamaseek.errors import UserError
from llamaseek.recipe.load import load_recipe, save_recipe
from llamaseek.recipe.schema import Recipe, TrainRecipe
from llamaseek.train.job import Interrupted
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Trainer, train
from llamaseek.train.optimizer import learning_rate
from llamaseek.train.saving.run_folder import RunFolder
from tests.train.tiny import recipe

FAMILIES = ("llama3", "deepseek_v3")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_masked_prediction_has_no_bits_per_byte(tmp_path: Path) -> None:
    made = recipe(tmp_path, "llama3", train__objective="masked", train__steps=1)
    lines = (train(build_job(made)).path / "metrics.jsonl").read_text()
    assert "val_loss" in lines and "val_bits_per_byte" not in lines


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_leaves_a_model_metrics_and_recipe(family: str, tmp_path: Path) -> None:
    objective = "next_token" if family == "llama3" else "multi_token"
    made = recipe(tmp_path, family, train__objective=objective, train__ema=0.9)
    folder = train(build_job(made)).path
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    tested = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 7))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [line["step"] for line in tested] == [3, 6]
    assert tested[-1]["val_bits_per_byte"] < 8
    assert ("expert_load_max_over_mean" in steps[0]) == (family == "deepseek_v3")
    assert (folder / "recipe.yaml").is_file()
    assert list((folder / "tensorboard").glob("events.*"))
    assert not list(folder.rglob(".partial*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulating_eight_rows_is_one_step_of_eight(family: str, tmp_path: Path) -> None:
    after = []
    for micro in (1, 8):
        changes = {"train__batch": 8, "train__micro_batch": micro, "train__lr": 1e-3}
        trainer = Trainer(build_job(recipe(tmp_path, family, **changes)))
        gradients = {}
        batch = trainer.job.objective.prepare(trainer.job.source.step(0, 8), 0)
        trainer._gradients(batch)
        for name, parameter in trainer.job.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()
        trainer.optimizer.zero_grad()
        loss = trainer.step(0)["loss"]
        after.append((loss, gradients))
    assert after[0][0] == pytest.approx(after[1][0], abs=1e-6)
    for name, gradient in after[0][1].items():
        assert float((gradient - after[1][1][name]).abs().max()) <= 1e-6, name


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    lines = []
    for again in (False, True):
        made = recipe(
            tmp_path, "deepseek_v3", train__objective="multi_token",
            train__checkpoint_activations=again,
        )  # fmt: skip
        trainer = Trainer(build_job(made))
        line = trainer.step(0)
        lines.append((line["loss"], line["grad_norm"], line["expert_load_max_over_mean"]))
    assert lines[0] == pytest.approx(lines[1], rel=1e-6)


# Children come from a server that has imported everything and computed nothing, so that each
# starts at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["llamaseek.train.jobs.pretrain", "torch.utils.tensorboard"])


def run(path: str, resume: bool, ready: Connection) -> None:
    """What a child does: the whole run, or what is left of it."""
    torch.set_num_threads(1)
    job = build_job(load_recipe(Path(path), []))
    ready.send(True)
    train(job, resume)


def start(path: Path, resume: bool) -> Any:
    """A child that has built its job and is about to train."""
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=run, args=(str(path), resume, theirs))
    process.start()
    ours.recv()
    return process


def killed_recipe(tmp_path: Path, name: str) -> tuple[Recipe, Path]:
    changes: dict[str, Any] = {
        "train__objective": "multi_token", "train__steps": 30, "train__save_every": 2,
        "train__batch": 2, "train__ema": 0.9, "train__eval_every": 15, "data__length": 32,
        "out": str(tmp_path / name),
    }  # fmt: skip
    made = recipe(tmp_path, "deepseek_v3", **changes)
    path = tmp_path / f"{name}.yaml"
    save_recipe(made, path)
    return made, path


@pytest.mark.slow
def test_killed_at_twenty_moments_the_weights_are_the_same_bits(tmp_path: Path) -> None:
    whole, path = killed_recipe(tmp_path, "whole")
    process = start(path, resume=False)
    began = time.monotonic()
    process.join(300)
    assert process.exitcode == 0
    whole_time = time.monotonic() - began

    cut, path = killed_recipe(tmp_path, "cut")
    rng, kills, while_writing = random.Random(7), 0, 0
    while kills < 20:
        process = start(path, resume=True)
        if kills % 2:  # every other kill waits for a checkpoint being written
            wait_for_partial(cut.folder, process)
        else:
            time.sleep(rng.uniform(0, whole_time / 8))
        if not process.is_alive():  # at its end before enough kills: begin again
            RunFolder(cut.folder).clear()
            continue
        process.kill()
        process.join()
        kills += 1
        while_writing += any(cut.folder.glob("checkpoints/.partial-step-*"))
    process = start(path, resume=True)
    process.join(300)
    assert process.exitcode == 0
    assert while_writing >= 5
    assert_same(weights(whole.folder), weights(cut.folder))


def wait_for_partial(folder: Path, process: Any) -> None:
    """Until a checkpoint is half written, or the process has ended."""
    while process.is_alive():
        if any(folder.glob("checkpoints/.partial-step-*")):
            return


def test_a_stop_signal_saves_and_resume_goes_on(tmp_path: Path) -> None:
    whole = recipe(tmp_path, out=str(tmp_path / "whole"))
    cut = recipe(tmp_path, out=str(tmp_path / "cut"))
    train(build_job(whole))

    def stop(step: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        train(build_job(cut), on_step=stop)
    assert stopped.value.step == 3
    assert not (cut.folder / "model").exists()
    train(build_job(cut), resume=True)
    assert_same(weights(whole.folder), weights(cut.folder))
    steps = [json.loads(x)["step"] for x in (cut.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 6


def test_a_run_that_goes_on_for_longer_says_so_in_its_recipe(tmp_path: Path) -> None:
    train(build_job(recipe(tmp_path)))
    longer = recipe(tmp_path, train__steps=8)
    train(build_job(longer), resume=True)
    assert load_recipe(longer.folder / "recipe.yaml", []).train.steps == 8


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = recipe(tmp_path, out=str(tmp_path / name), seed=seed)
        train(build_job(run))
        made.append(weights(run.folder))
    assert_same(made[0], made[1])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_a_run_that_is_there_is_not_lost_by_accident(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    train(build_job(made))
    folder = RunFolder(made.folder)
    with pytest.raises(UserError, match="--resume continues it, --overwrite starts again"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=True, overwrite=False)
    folder.check(resume=False, overwrite=True)
    with pytest.raises(UserError, match="no checkpoint"):
        RunFolder(tmp_path / "nothing").check(resume=True, overwrite=False)


def test_schedules_warm_up_and_come_down() -> None:
    cosine = TrainRecipe(steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [learning_rate(cosine, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    wsd = TrainRecipe(steps=100, warmup=10, lr=1.0, min_lr=0.0, schedule="wsd", decay=0.2)
    rates = [learning_rate(wsd, step) for step in range(100)]
    assert rates[10:80] == [1.0] * 70 and rates[-1] < 0.1
