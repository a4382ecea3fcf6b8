"""What the notebooks share: sizes, the one trained model, source code in place, and pictures.

LLAMASEEK_COURSE is `smoke` (seconds a notebook) or `full` (up to three minutes each, the default);
LLAMASEEK_COURSE_RUNS is the folder of the trained models, `runs/course` by default.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
from IPython.display import Code

import llamaseek
from llamaseek.checkpoints.sources import cached
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.reading import find_recipe

FOLDER = Path(__file__).parent
SMOKE = os.environ.get("LLAMASEEK_COURSE", "full") == "smoke"
RUNS = Path(os.environ.get("LLAMASEEK_COURSE_RUNS", "runs/course"))
SMOLLM2 = cached("smollm2-135m-instruct")
"""The published SmolLM2-135M-Instruct, if `llamaseek download smollm2-135m-instruct` has run."""

plt.rcParams.update({"figure.dpi": 80, "figure.figsize": (7, 3), "figure.autolayout": True})

T = TypeVar("T")
Overrides = dict[str, Any]
STAGES = ("pretrain", "sft", "instruct", "dpo")
SIZES: dict[str, tuple[Overrides, Overrides]] = {
    "pretrain": (
        {"train.steps": 200, "train.batch": 32, "train.warmup": 20, "data.mix_bytes": 3_000_000},
        {"train.steps": 12, "train.batch": 8, "train.warmup": 2, "data.mix_bytes": 150_000,
         "tokenizer.vocab_size": 400},
    ),
    "sft": ({"train.steps": 60, "train.batch": 32},
            {"train.steps": 8, "data.rows": {"tasks": 200}}),
    "instruct": ({"train.steps": 80, "train.batch": 32},
                 {"train.steps": 8, "data.rows": {"instructions": 200}}),
    "dpo": ({"train.steps": 30}, {"train.steps": 4, "data.rows": {"preferences": 60}}),
}  # fmt: skip
"""What a stage changes in the quickstart's recipe: at full size, and at smoke size."""


def pick(full: T, smoke: T) -> T:
    """`full`, or `smoke` where the notebook runs at smoke size."""
    return smoke if SMOKE else full


def source(thing: object) -> Code:
    """The project's own code of a class or function, as it is installed."""
    return Code(inspect.getsource(thing), language="python")  # type: ignore[arg-type]


def trained(stage: str = "pretrain", family: str = "llama3") -> llamaseek.Run:
    """The course's small model after a stage; trained once, found again by its recipe's hash."""
    earlier = STAGES[: STAGES.index(stage)]
    start = {"model.init_from": str(trained(earlier[-1], family).model_folder)} if earlier else {}
    name = f"quickstart-{stage if earlier else family}"
    return run(name, {**SIZES[stage][SMOKE], **start}, f"{family}-{stage}")


def run(recipe: str, overrides: Overrides, name: str) -> llamaseek.Run:
    """A recipe's run, quietly; one with the same recipe that is done is taken as it is."""
    keys = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    resolved = load_recipe(find_recipe(recipe), keys).model_dump_json()
    folder = RUNS / f"{name}-{hashlib.sha256(resolved.encode()).hexdigest()[:8]}"
    if (folder / "report.html").is_file():
        return llamaseek.Run(folder)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return llamaseek.train(recipe, {**overrides, "out": str(folder)}, overwrite=True)


def curve(found: llamaseek.Run, key: str) -> tuple[list[int], list[float]]:
    """The steps and values of one of a run's metrics."""
    lines = [line for line in found.metrics if key in line]
    return [line["step"] for line in lines], [line[key] for line in lines]
