"""`study`: one of the lecture's questions, answered by training small models."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from textwrap import fill
from typing import Literal

import typer

from llamaseek.cli.shared import this_command
from llamaseek.errors import UserError, bad_value

Name = Literal["data-scaling", "size", "mix", "stages", "start", "parallelism"]
NAME = typer.Argument(help="data-scaling, size, mix, stages, start or parallelism.")
OVERRIDES = typer.Argument(
    None, metavar="[KEY=VALUE]...", help="Overrides of the study's recipe, e.g. train.steps=500."
)
OUT = typer.Option(None, help="The run folder. Default: runs/study-NAME.")
SEEDS = typer.Option(2, help="Number of seeds that each training is repeated with.")
SMOKE = typer.Option(False, "--smoke", help="A test run of seconds; its results are meaningless.")


NUMBER = typer.Argument(None, metavar="[N]", help="The number of one question. Default: all.")


def questions(number: int = NUMBER) -> None:
    """Print the lecture's class questions with answers, reasons and what measures them."""
    from llamaseek.study.questions import QUESTIONS, find_question

    for place in QUESTIONS if number is None else (number,):
        question = find_question(place)
        print(f"Question {place}. {question.text}")
        for index, option in enumerate(question.options, 1):
            print(f"  {'*' if index in question.answers else ' '} {index}. {option}")
        print(fill(question.why, 96))
        print(f"Shown by {question.shown_by}; measured by: {question.command}\n")


def study(
    name: Name = NAME,
    overrides: list[str] = OVERRIDES,
    out: Path = OUT,
    seeds: int = SEEDS,
    smoke: bool = SMOKE,
) -> None:
    """Run one of the lecture's experiments: train small models in minutes and plot the result."""
    if seeds < 1:
        raise bad_value("seeds", seeds, "a number of at least 1")
    from llamaseek.study.answer import answer
    from llamaseek.study.runs import Settings
    from llamaseek.train.job import Interrupted

    folder = out or Path(f"runs/study-{name}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out: {folder} is a file; a folder is allowed")
    items = 8 if smoke else 200
    settings = Settings(folder, tuple(range(seeds)), tuple(overrides or ()), smoke, items)
    started = time.perf_counter()
    try:
        figures = answer(name, settings)
    except Interrupted as stop:
        print(f"{stop}; to resume:\n  {this_command()}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    print(f"{figures['question']}\n{figures['says']}")
    print(f"took     {(time.perf_counter() - started) / 60:.1f} minutes")
    print(f"plot     {folder / 'plot.png'}\nfigures  {folder / 'figures.json'}")
