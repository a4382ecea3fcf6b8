"""Keeping the weights of the lowest held-out loss, and stopping when it no longer falls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamaseek.errors import UserError
from llamaseek.recipe.schema import Recipe
from llamaseek.report.model import read_report
from llamaseek.report.page import render_page
from llamaseek.train.best import RESTORED, BestEvaluation
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Trainer, train
from tests.train.tiny import recipe

LOSSES = {2: 5.0, 4: 4.0, 6: 4.5, 8: 4.6, 10: 3.0}


def made(folder: Path, **changes: Any) -> Recipe:
    return recipe(
        folder, train__steps=10, train__eval_every=2, train__keep=1, train__min_lr=1.0,
        train__load_best_model_at_end=True, **changes,
    )  # fmt: skip


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses by the step that was reached, in place of measured ones."""
    evaluate = Trainer._evaluate

    def scripted(self: Trainer) -> dict[str, float]:
        step = int(self.place.removeprefix("step "))
        return {**evaluate(self), "val_loss": LOSSES[step]}

    monkeypatch.setattr(Trainer, "_evaluate", scripted)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_the_lowest_loss_and_the_evaluations_since() -> None:
    lines = [{"step": 0, "val_loss": 0.1}] + [
        {"step": step, "val_loss": loss} for step, loss in LOSSES.items()
    ]
    best = BestEvaluation.of(lines[:-1])
    assert (best.step, best.loss, best.since) == (4, 4.0, 2)
    assert best.should_stop(2) and not best.should_stop(3) and not best.should_stop(None)
    assert BestEvaluation.of(lines).step == 10
    assert BestEvaluation.of([*lines, {"step": 10, "val_loss": 1.0, RESTORED: 4}]).loss == 3.0


def test_a_run_ends_early_with_the_best_weights(scripted: None, tmp_path: Path) -> None:
    whole = train(build_job(made(tmp_path, train__early_stopping_patience=2))).path
    lines = lines_of(whole)
    assert max(line["step"] for line in lines) == 8
    assert lines[-1][RESTORED] == 4
    kept = load_file(whole / "checkpoints" / "step-4" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in final(whole).items())
    last = load_file(whole / "checkpoints" / "step-8" / "model.safetensors")
    assert any(not torch.equal(last[name], tensor) for name, tensor in final(whole).items())
    assert "At step 4," in (whole / "model" / "README.md").read_text()
    assert "weights of step" in render_page(read_report(whole))


def test_the_last_weights_stay_where_they_are_the_best(scripted: None, tmp_path: Path) -> None:
    whole = train(build_job(made(tmp_path))).path
    assert not any(RESTORED in line for line in lines_of(whole))
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"step-10"}


def test_a_resumed_run_knows_its_best_step(scripted: None, tmp_path: Path) -> None:
    """A stop after step 6 leaves the checkpoint of step 4, which the rest does not beat."""
    from llamaseek.train.job import Interrupted

    first = made(tmp_path, train__early_stopping_patience=2)

    def stop(step: int) -> None:
        if step == 5:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(build_job(first), on_step=stop)
    names = {path.name for path in (first.folder / "checkpoints").iterdir()}
    assert names == {"step-4", "step-6"}
    whole = train(build_job(first), resume=True).path
    assert lines_of(whole)[-1][RESTORED] == 4
    kept = load_file(whole / "checkpoints" / "step-4" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in final(whole).items())


def test_a_run_without_held_out_loss_cannot_choose(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.load_best_model_at_end: .*data.holdout"):
        train(build_job(made(tmp_path, data__holdout=0.0)))
