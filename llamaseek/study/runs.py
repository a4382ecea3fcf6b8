"""What the studies share: settings, trainings that are not done twice, held-out figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.mix.encode import Encoder
from llamaseek.data.pack import pack_text
from llamaseek.files import write_text
from llamaseek.models.loss import next_token_loss
from llamaseek.pictures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, save
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.reading import find_recipe
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.device import autocast, pick_device
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.job import Job
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train

SMOKE = ("train.steps=2", "train.batch=4", "train.warmup=1")
SMOKE_CORPUS = ("data.mix_bytes=150000", "tokenizer.vocab_size=400")
Prepare = Callable[[Job], None]
"""Changes a job that a recipe alone cannot describe, before it is trained."""


@dataclass(frozen=True)
class Settings:
    """Where a study writes, which seeds it repeats, what it changes in its recipes."""

    folder: Path
    seeds: Sequence[int] = (0, 1)
    overrides: Sequence[str] = ()
    smoke: bool = False
    items: int = 200  # held-out items behind an accuracy

    @property
    def chain(self) -> Settings:
        """Where the models of the three stages are, which two studies begin with."""
        return replace(self, folder=self.folder.parent / "study-chain")

    def recipe(self, base: str, name: str, *extra: str) -> Recipe:
        """A bundled recipe whose run folder is `name` in the study's."""
        place = [f"name={self.folder.name}/{name}", f"out={self.folder / name}"]
        small = SMOKE if self.smoke else ()
        user = self.overrides if base == "study" else ()
        return load_recipe(find_recipe(base), [*user, *place, *extra, *small])


@dataclass(frozen=True)
class Finding:
    """What a study showed: a sentence, its figures, and the picture of them."""

    says: str
    rows: list[dict[str, Any]]
    draw: Callable[[Figure], None]


def trained(recipe: Recipe, prepare: Prepare | None = None) -> Path:
    """The model's folder of a recipe; trained unless the same recipe was, continued if cut off."""
    saved, model = recipe.folder / "recipe.yaml", recipe.folder / "model"
    same = saved.is_file() and load_recipe(saved, []) == recipe
    if same and model.is_dir():
        return model
    job = build_job(recipe, same)
    if prepare is not None:
        prepare(job)
    train(job, resume=same)
    return model


@torch.no_grad()
def held_out_loss(folder: Path, rows: Batch, recipe: Recipe) -> float:
    """Mean next-token loss of a trained model on packed rows, in nats a token."""
    device = pick_device(recipe.train.device)
    model, total = load_model(folder).to(device).eval(), 0.0
    for part in rows.split(recipe.train.batch):
        part = part.to(device)
        with autocast(recipe.train, device):
            hidden = model(part.tokens, part.positions)
            total += float(next_token_loss(model.lm_head, hidden, part.targets))
    return total / int((rows.targets != IGNORE).sum())


def write_documents(path: Path, texts: Iterable[str]) -> Path:
    """Texts as a jsonl file that a recipe can name as its source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def packed(recipe: Recipe, tokenizer: Tokenizer, texts: Iterable[str]) -> Batch:
    """Whole texts as the recipe's rows."""
    return pack_text(Encoder(tokenizer)(iter(texts)), recipe.data.length, recipe.data.isolate)


def steps_for(tokens: int, recipe: Recipe) -> int:
    """Steps that read `tokens` once."""
    return max(tokens // (recipe.train.batch * recipe.data.length), 1)


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    found = list(values)
    return sum(found) / len(found)


COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MAIN, SECOND = COLORS[:2]
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def write_figure(path: Path, title: str, draw: Callable[[Figure], None]) -> None:
    """Let `draw` fill a figure; written beside `path` and renamed into place."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        draw(figure)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        save(figure, path)


def panel(figure: Figure, x: str, y: str) -> Axes:
    """The only axes of a figure."""
    axis = figure.subplots()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    return axis


def grouped_bars(
    axis: Axes, groups: list[str], series: dict[str, list[float]], form: str = "{:.0%}"
) -> None:
    """A group of bars for each name, one bar a series, each with its value on top."""
    width = 0.8 / len(series)
    for number, (color, (name, values)) in enumerate(zip(COLORS, series.items(), strict=False)):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(groups))]
        bars = axis.bar(places, values, width * 0.92, color=color, label=name)
        axis.bar_label(bars, [form.format(value) for value in values], fontsize=7)
    axis.set_xticks(range(len(groups)), groups)
    axis.margins(y=0.15)  # room for the values under the legend
    axis.grid(False, axis="x")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(series))
