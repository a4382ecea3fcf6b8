"""A finished tiny run with three checkpoints, to break and to go on from."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from llamaseek.recipe.schema import Recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.train.tiny import recipe

FEW = {"train__save_every": 2, "train__keep": 3, "train__eval_every": 50, "train__ema": 0.9}


@cache
def whole_run() -> Path:
    """Steps 2, 4 and 6 of a run of six steps."""
    folder = Path(mkdtemp(prefix="llamaseek-tests-"))
    return train(build_job(recipe(folder, **FEW))).path


def copied_run(folder: Path, **changes: Any) -> Recipe:
    """The same run in `folder`; the recipe to go on with."""
    folder.mkdir(exist_ok=True)
    made = recipe(folder, **{**FEW, **changes})
    shutil.copytree(whole_run(), made.folder)
    return made


def state(made: Recipe, step: int) -> Path:
    """Where a step's state lies."""
    return made.folder / "checkpoints" / f"step-{step}" / "state"


def weights(folder: Path) -> dict[str, Tensor]:
    """The final model's."""
    return load_file(folder / "model" / "model.safetensors")
