"""`quickstart`: train a small model through all stages. `doctor`: what this machine has for it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from llamaseek.cli.shared import program, say_started, this_command
from llamaseek.errors import quoted

if TYPE_CHECKING:
    from rich.console import Console

    from llamaseek.report.model import Figure
    from llamaseek.study.lecture import Sample

FAMILY = typer.Option("llama3", help="llama3 or deepseek_v3.")
OUT = typer.Option(None, help="The run folder. Default: runs/quickstart-FAMILY.")
OVERWRITE = typer.Option(False, "--overwrite", help="Start again instead of resuming.")
JSON = typer.Option(False, "--json", help="Print JSON.")
SMOKE = typer.Option(False, "--smoke", help="A test run of seconds; its results are meaningless.")


def quickstart(
    family: Literal["llama3", "deepseek_v3"] = FAMILY,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
    smoke: bool = SMOKE,
) -> None:
    """Pre-train, fine-tune, instruction-tune and align a small model; compare the stages."""
    folder = out or Path(f"runs/quickstart-{family}")
    say_started(f"quickstart: four stages into {folder}, making the training data")
    from rich.console import Console

    from llamaseek.report.model import stage_figures
    from llamaseek.report.page import write_report
    from llamaseek.study.lecture import STAGES
    from llamaseek.study.quickstart import QuickstartResults
    from llamaseek.study.quickstart import quickstart as run
    from llamaseek.train.job import Interrupted

    console = Console(highlight=False)

    def watch(stage: str, found: QuickstartResults) -> None:
        title, summary = STAGES[stage]
        console.rule(f"[bold]{title}[/bold]", align="left")
        console.print(summary)
        show_figures(console, stage_figures(stage, found.figures))
        show_samples(console, found.of(stage))

    try:
        figures = run(family, folder, smoke, overwrite, watch)
    except Interrupted as stop:
        print(f"{stop}; to resume:\n  {this_command()}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    page = write_report(folder)
    console.rule(align="left")
    console.print(f"took     {figures['seconds'] / 60:.1f} minutes")
    console.print(f"report   {page}", soft_wrap=True)
    console.print(f"figures  {folder / 'figures.json'}", soft_wrap=True)
    model = folder / "dpo" / "model"
    for name, command, then in (
        ("chat", quoted(program(), "chat", model), ""),
        ("page", quoted(program(), "serve", model), "   then open http://127.0.0.1:8000"),
    ):
        console.print(f"{name}     {command}{then}", style="bold", markup=False, soft_wrap=True)


def show_figures(console: Console, figures: list[Figure]) -> None:
    """Print each metric before and after, one line per metric."""
    from rich.table import Table

    table = Table("held-out items", "before", "after", box=None, padding=(0, 3, 0, 0))
    for figure in figures:
        before = "–" if figure.before is None else f"{figure.before:.1%}"
        table.add_row(figure.name, before, f"[bold]{figure.after:.1%}[/bold]")
    console.print(table)


def show_samples(console: Console, samples: list[Sample]) -> None:
    """Print the model's answers to the lecture's examples before and after each stage."""
    from rich.table import Table
    from rich.text import Text

    table = Table("the lecture's example", "before", "after", show_lines=True, expand=True)
    for sample in samples:
        before = Text(sample.before or "(nothing)", "dim", overflow="fold")
        after = Text(sample.after or "(nothing)", "bold", overflow="fold")
        table.add_row(Text(sample.prompt), before, after)
    console.print(table)


def doctor(json: bool = JSON) -> None:
    """Say what this machine has (extras, kernels, GPU, sandbox, cache), and how to get the rest."""
    from llamaseek.report.doctor import examine

    found = list(examine())
    if json:
        from json import dumps

        print(dumps([asdict(fact) for fact in found], indent=2))
        return
    width = max(len(fact.subject) for fact in found)
    for fact in found:
        mark = "ok" if fact.good else "--"
        print(f"{mark}  {fact.subject:<{width}}  {fact.found}")
        if fact.command:
            print(f"    {'':<{width}}  {fact.command}")
