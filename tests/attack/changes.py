"""Forty changes between a run and its resumption: each is refused by name, or reported and
accepted.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from llamaseek.errors import UserError
from llamaseek.recipe.schema import Recipe
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from llamaseek.train.saving import pins
from tests.attack.figures import Figure
from tests.train.saving.runs import FEW, copied_run
from tests.train.tiny import LLAMA_SIZES, recipe

PROMISE = "each is refused by name, with nothing written, or reported and accepted"
Act = Callable[[Recipe], contextlib.AbstractContextManager[Any] | None]


@dataclass(frozen=True)
class Change:
    """What is other when a run goes on: keys of its recipe, or what `act` does to its files."""

    key: str
    refused: bool
    recipe: dict[str, Any]
    act: Act | None = None


def config(**sizes: Any) -> dict[str, Any]:
    """Another model."""
    return {"model__config": {**LLAMA_SIZES, **sizes}}


def edit(path: Callable[[Recipe], Path], old: str, new: str) -> Act:
    """A text of a file is another, once."""

    def act(made: Recipe) -> None:
        text = path(made).read_text()
        assert old in text, f"{path(made)}: {old}"
        path(made).write_text(text.replace(old, new, 1))

    return act


def source(made: Recipe) -> Path:
    """The text that the run learns."""
    return Path(made.data.sources[0])


def saved(name: str) -> Callable[[Recipe], Path]:
    """A file of the newest checkpoint."""
    return lambda made: made.folder / "checkpoints" / "step-6" / name


def append(made: Recipe) -> None:
    """One byte more of text."""
    source(made).write_bytes(source(made).read_bytes() + b".")


def cut(made: Recipe) -> None:
    """The text loses its last paragraph."""
    source(made).write_text(source(made).read_text().rpartition("\n\n")[0])


def swap(made: Recipe) -> None:
    """The same paragraphs in another order."""
    parts = source(made).read_text().split("\n\n")
    source(made).write_text("\n\n".join([*parts[1:], parts[0]]))


def another_version(made: Recipe) -> contextlib.AbstractContextManager[Any]:
    """Another version of the code."""
    return mock.patch.object(pins, "code_version", lambda: "9.9")


def another_torch(made: Recipe) -> contextlib.AbstractContextManager[Any]:
    """Another version of PyTorch."""
    return mock.patch.object(pins.torch, "__version__", "9.9")


FIXED: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "train.lr": {"train__lr": 1e-2},
    "train.objective": {"train__objective": "masked"},
    "train.precision": {"train__precision": "fp64"},
    "train.batch": {"train__batch": 2},
    "train.moments": {"train__moments": "bf16"},
    "train.ema": {"train__ema": 0.5},
    "train.warmup": {"train__warmup": 1},
    "train.schedule": {"train__schedule": "wsd"},
    "train.betas": {"train__betas": [0.8, 0.95]},
    "train.weight_decay": {"train__weight_decay": 0.2},
    "train.clip": {"train__clip": 0.5},
    "train.mtp_weight": {"train__mtp_weight": 0.1},
    "data.length": {"data__length": 32},
    "data.holdout": {"data__holdout": 0.2},
    "data.isolate": {"data__isolate": False},
    "data.shuffle": {"data__shuffle": True},
    "data.bad_rows": {"data__bad_rows": "skip"},
    "tokenizer.vocab_size": {"tokenizer": {"vocab_size": 420}},
    "model.config": config(rope_theta=20000.0),
}
OTHER_SIZES = ({"hidden_size": 48}, {"num_hidden_layers": 3}, {"rms_norm_eps": 1e-4},
               {"tie_word_embeddings": False})  # fmt: skip
TOLD: dict[str, dict[str, Any]] = {
    "train.steps": {"train__steps": 9},
    "train.save_every": {"train__save_every": 3},
    "train.keep": {"train__keep": 1},
    "train.eval_every": {"train__eval_every": 7},
    "train.micro_batch": {"train__micro_batch": 2},
    "train.min_lr": {"train__min_lr": 0.2},
    "train.save_in_background": {"train__save_in_background": True},
    "name": {"name": "other"},
}
CHANGES = [
    *(Change(key, True, recipe) for key, recipe in FIXED.items()),
    *(Change("model.config", True, config(**sizes)) for sizes in OTHER_SIZES),
    *(Change(key, False, recipe) for key, recipe in TOLD.items()),
    Change("data", True, {}, edit(source, "the", "thy")),
    Change("data", True, {}, append),
    Change("data", True, {}, cut),
    Change("data", True, {}, swap),
    Change("tokenizer", True, {},
           edit(saved("tokenizer_config.json"), '"<|end_of_text|>"', '"<|eot_id|>"')),
    Change("tokenizer", True, {}, edit(saved("tokenizer.json"), '"type"', '"type" ')),
    Change("code", False, {}, another_version),
    Change("code", False, {}, another_torch),
]  # fmt: skip


def outcome(change: Change, place: Path) -> str:
    """`refused` or `told` where the key is named, else what happened."""
    longer = {"train__steps": 7}
    made = copied_run(place, **longer)
    context = change.act(made) if change.act else None
    other = recipe_at(place, made, {**longer, **change.recipe})
    metrics = made.folder / "metrics.jsonl"
    before, said = metrics.read_bytes(), io.StringIO()
    with context or contextlib.nullcontext(), contextlib.redirect_stderr(said):
        try:
            train(build_job(other, resume=True), resume=True)
        except UserError as error:
            named = f"another {change.key}" in str(error) and metrics.read_bytes() == before
            return "refused" if named else f"refused: {error}"
    lines = [json.loads(line).get("changed") for line in metrics.read_text().splitlines()]
    told = any(f"{change.key} (" in each for line in lines if line for each in line)
    return "told" if told and f"{change.key} (" in said.getvalue() else "silent"


def recipe_at(place: Path, made: Recipe, changes: dict[str, Any]) -> Recipe:
    """The changed recipe; its text stays as it lies there."""
    text = source(made).read_bytes()
    other = recipe(place, **{**FEW, **changes})
    source(made).write_bytes(text)
    return other


def outcomes(changes: list[Change]) -> Iterator[tuple[Change, str]]:
    """Each change and what became of it."""
    with TemporaryDirectory() as place:
        for number, change in enumerate(changes):
            yield change, outcome(change, Path(place, str(number)))


def campaign() -> Iterator[Figure]:
    """About a minute."""
    found = list(outcomes(CHANGES))
    refused, told = (sum(each == word for _, each in found) for word in ("refused", "told"))
    kept = all(each == ("refused" if change.refused else "told") for change, each in found)
    silent = len(found) - refused - told
    seen = f"{refused} refused by name, {told} reported and accepted, {silent} otherwise"
    tried = f"{len(found)} changes between a run and its resumption: keys, data, tokenizer, code"
    yield Figure(tried, seen, PROMISE, kept)
