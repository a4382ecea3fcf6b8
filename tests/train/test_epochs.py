"""Epochs in place of steps: how many steps they are, and that a run of them can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llamaseek.errors import UserError
from llamaseek.recipe.schema import Recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.train.tiny import recipe


def by_epochs(folder: Path, epochs: float, **changes: object) -> Recipe:
    made = recipe(folder, **changes)
    return made.with_overrides({"train.epochs": epochs})


def test_epochs_become_steps_and_can_go_on(tmp_path: Path) -> None:
    small = {"train__batch": 128, "train__eval_every": 99}
    job = build_job(by_epochs(tmp_path, 1, **small))
    rows = job.source.rows
    assert rows is not None and rows > 128
    steps = -(-rows // 128)
    assert (job.recipe.train.steps, job.recipe.train.epochs) == (steps, None)
    (note,) = job.bad_rows.summary()
    assert f"an epoch has {rows} rows of 64 tokens" in note
    assert f"train.epochs 1 is {steps} steps" in note
    folder = train(job)
    saved = yaml.safe_load((folder.path / "recipe.yaml").read_text())
    assert saved["train"]["steps"] == steps
    again = build_job(by_epochs(tmp_path, 1.5, **small), resume=True)
    assert again.recipe.train.steps == -(-rows * 3 // 256)
    train(again, resume=True)
    assert folder.saved_steps()[-1] == again.recipe.train.steps


def test_epochs_and_steps_exclude_each_other(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    with pytest.raises(UserError, match="train: steps and epochs are both given"):
        made.with_overrides({"train.epochs": 2, "train.steps": 7})
    epochs = made.with_overrides({"train.epochs": 2})
    assert epochs.train.epochs == 2 and "steps" not in epochs.model_dump()["train"]
    assert epochs.with_overrides({"train.lr": 1e-4}).train.epochs == 2
    assert epochs.with_overrides({"train.steps": 7}).train.epochs is None
    with pytest.raises(UserError, match="data.phases and data.budgets are for train.steps"):
        epochs.with_overrides({"data.budgets": {"text": 100}})
    with pytest.raises(UserError, match="use train.epochs"):
        made.with_overrides({"train.num_train_epochs": 3})


def test_a_mix_has_no_epochs(tmp_path: Path) -> None:
    made = recipe(tmp_path, data__sources=[], data__mix={"stories": 1, "math": 1})
    made = made.with_overrides({"data.mix_bytes": 20_000, "train.epochs": 1})
    with pytest.raises(UserError, match=r"train\.epochs: a mix of sources has no epochs"):
        build_job(made)
