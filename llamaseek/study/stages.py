"""Why not a single training? Several stages beside one on everything, at equal tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.batch import Batch
from llamaseek.data.builtin.rows import generated_rows
from llamaseek.data.rows import conversations
from llamaseek.data.source import Rows, Source
from llamaseek.evals.generated import (
    Generator,
    instruction_following,
    story_parse_rate,
    task_exact_match,
)
from llamaseek.recipe.schema import Recipe
from llamaseek.study.runs import SMOKE_CORPUS, Finding, Settings, grouped_bars, mean, trained
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.job import Job


@dataclass(frozen=True)
class Together(Source):
    """Batches that hold rows of text and rows of chats, as a single training sees both."""

    text: Source
    chats: Rows
    text_rows: int

    @property
    def length(self) -> int:
        """Tokens a row, at most."""
        return self.chats.length

    def step(self, step: int, rows: int) -> Batch:
        """See `Source.step`."""
        parts = [self.chats.step(step, rows - self.text_rows)]
        if self.text_rows:
            parts.append(self.text.step(step, self.text_rows))
        return Batch(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat([part.targets for part in parts]),
        )


WAYS = ("stages", "one training", "instructions only")
MEASURES = ("stories", "tasks", "instructions")
TASK_ROWS, INSTRUCTION_ROWS = 4000, 5000
SFT_STEPS, INSTRUCT_STEPS = 120, 160  # of the recipe's batch, like pre-training's


def stages(settings: Settings) -> Finding:
    """Stories continued, tasks solved and instructions followed after each way."""
    rows = []
    for seed in settings.seeds:
        models = {
            "stages": staged(settings.chain, seed)[-1],
            "one training": single(settings, seed, with_text=True),
            "instructions only": single(settings, seed, with_text=False),
        }
        for way, folder in models.items():
            rows.append({"seed": seed, "way": way, **measure(folder, settings.items)})
    return Finding(sentence(rows), rows, lambda figure: draw(figure, rows))


def pretraining(settings: Settings, place: str, seed: int, *extra: str) -> Recipe:
    """The study's pre-training recipe with a seed."""
    small = SMOKE_CORPUS if settings.smoke else ()
    return settings.recipe("study", place, f"seed={seed}", *small, *extra)


def staged(settings: Settings, seed: int) -> list[Path]:
    """Pre-training, fine-tuning on tasks, instruction tuning: the three models' folders."""
    base = pretraining(settings, f"seed-{seed}/pretrain", seed)
    models = [trained(base)]
    batch = f"train.batch={base.train.batch}"
    for stage, rows, steps in (
        ("sft", f"{{tasks: {TASK_ROWS}}}", SFT_STEPS),
        ("instruct", f"{{instructions: {INSTRUCTION_ROWS}, tasks: 1000}}", INSTRUCT_STEPS),
    ):
        start = (f"model.init_from={models[-1]}", f"seed={seed}", f"data.rows={rows}")
        size = (batch, f"train.steps={steps}")
        recipe = settings.recipe(f"quickstart-{stage}", f"seed-{seed}/{stage}", *start, *size)
        models.append(trained(recipe))
    return models


def single(settings: Settings, seed: int, with_text: bool) -> Path:
    """One training with as many steps as the stages have together, on all rows at once.

    Without text it learns the tasks and instructions alone, from nothing.
    """
    place = f"seed-{seed}/" + ("single" if with_text else "instructions-only")
    base = pretraining(settings, place, seed)
    # A schedule for the whole; the tokenizer is trained on the same text as in the stages.
    steps = base.train.steps + SFT_STEPS + INSTRUCT_STEPS
    recipe = pretraining(settings, place, seed, f"train.steps={steps}")

    text_rows = round(base.train.batch * base.train.steps / steps) if with_text else 0

    def mixed(job: Job) -> None:
        wanted = {"tasks": TASK_ROWS, "instructions": INSTRUCTION_ROWS}
        rows = generated_rows(wanted, seed, "train")
        chats = Rows(conversations(rows, job.tokenizer, recipe.data.length), seed)
        job.source = Together(job.source, chats, text_rows)

    return trained(recipe, mixed)


def measure(folder: Path, items: int) -> dict[str, float]:
    """What a model can do, on held-out items."""
    speaker = Generator(load_model(folder), Tokenizer.load(folder))
    return {
        "stories": story_parse_rate(speaker, items),
        "tasks": mean(task_exact_match(speaker, items).values()),
        "instructions": instruction_following(speaker, items),
    }


def average(rows: list[dict[str, Any]], way: str) -> list[float]:
    """The measures of a way, over its seeds."""
    return [mean(row[key] for row in rows if row["way"] == way) for key in MEASURES]


def sentence(rows: list[dict[str, Any]]) -> str:
    """The three ways beside each other."""
    parts = []
    for way in WAYS:
        stories, tasks, instructions = average(rows, way)
        parts.append(
            f"{way}: {stories:.0%} stories, {tasks:.0%} tasks, {instructions:.0%} followed"
        )
    return "at equal tokens, " + "; ".join(parts)


def draw(figure: Figure, rows: list[dict[str, Any]]) -> None:
    """Bars by measure."""
    axis = figure.subplots()
    axis.set_ylabel("held-out items")
    axis.set_ylim(0, 1.08)
    names = ["stories continued", "tasks solved", "instructions followed"]
    grouped_bars(axis, names, {way: average(rows, way) for way in WAYS})
