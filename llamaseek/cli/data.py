"""`data`: clean a corpus, let a judge filter it, look at what came of it and at training rows."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamaseek.cli.shared import program, this_command, tokenizer_folder
from llamaseek.cli.words import Command
from llamaseek.errors import UserError, bad_value, quoted
from llamaseek.recipe.reading import apply_override, find_recipe, validated
from llamaseek.recipe.schema import DataRecipe, Recipe

if TYPE_CHECKING:
    from llamaseek.data.clean.run import OnStep
    from llamaseek.data.detect import DetectedRows
    from llamaseek.data.rows import Span
    from llamaseek.train.jobs.preview import ShownRow


RECIPE = typer.Argument(help="A recipe file, or the name of a bundled recipe.")
OVERRIDES = typer.Argument(
    None, metavar="[KEY=VALUE]...", help="Overrides of recipe fields, e.g. out=data/web."
)
WORKERS = typer.Option(0, help="Worker processes on this machine; 0 uses every core.")
MACHINE = typer.Option(0, help="Index of this machine, from 0.")
MACHINES = typer.Option(1, help="Number of machines that share the run through one folder.")
OVERWRITE = typer.Option(False, "--overwrite", help="Replace an existing run in the same folder.")
DRY_RUN = typer.Option(False, "--dry-run", help="Check the recipe and print it without running it.")
SOURCE = typer.Argument(
    help="A file, folder or glob of rows; or a recipe file, or the name of a bundled recipe."
)
MODEL = typer.Option(
    None, "--model", help="Model whose tokenizer and chat format show a file's rows."
)
ROWS = typer.Option(3, min=1, help="Number of rows to print.")

LEGEND = "Green: what has a loss. Dimmed: what the model only reads."

app = typer.Typer(no_args_is_help=True, help="Clean, grade and inspect training data.")


@app.command(cls=Command)
def clean(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    workers: int = WORKERS,
    machine: int = MACHINE,
    machines: int = MACHINES,
    overwrite: bool = OVERWRITE,
    dry_run: bool = DRY_RUN,
) -> None:
    """Filter, deduplicate and decontaminate a corpus; every removed document has its reason."""
    if machines < 1:
        raise bad_value("--machines", machines, "at least 1")
    if not 0 <= machine < machines:
        raise bad_value("--machine", machine, f"0 to {machines - 1}")

    from llamaseek.data.clean.recipe import dump, load_clean_recipe

    loaded = load_clean_recipe(find_recipe(recipe), overrides or [])
    if dry_run:
        print_recipe(dump(loaded))
        return

    from llamaseek.data.clean.engine import CleaningWorkers
    from llamaseek.data.clean.run import clean as run

    pool = CleaningWorkers(workers or cores(), machine, machines)
    with step_bar(loaded.name) as on_step, stoppable():
        folder = run(loaded, pool, overwrite, on_step)
    if machine == 0:
        finish(folder)


@app.command(cls=Command)
def judge(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    workers: int = WORKERS,
    dry_run: bool = DRY_RUN,
) -> None:
    """Grade a sample with a model, train a classifier on the grades and filter the corpus."""
    from llamaseek.data.quality.recipe import load_quality_recipe

    loaded = load_quality_recipe(find_recipe(recipe), overrides or [])
    if dry_run:
        print_recipe(loaded.model_dump(mode="json"))
        return

    from llamaseek.data.clean.engine import CleaningWorkers
    from llamaseek.data.quality.flow import filter_by_judge
    from llamaseek.evals.judge import open_judge
    from llamaseek.report.data_page import write_data_report

    asked = loaded.judge
    grader = open_judge(
        asked.model, asked.url, asked.rubric, asked.best, asked.at_once, asked.device
    )
    pool = CleaningWorkers(workers or cores())
    with grade_bar(loaded.name) as on_grade, step_bar(loaded.name) as on_step, stoppable():
        found = filter_by_judge(loaded, grader, pool, on_grade, on_step)
    print(
        f"classifier and judge on {found.documents} held-out documents: "
        f"same grade {found.exact:.1%} (most frequent grade {found.majority:.1%}), "
        f"within one {found.within_one:.1%}, correlation {found.correlation:.3f}, "
        f"keep or not F1 {found.f1:.3f}"
    )
    write_data_report(loaded.folder)
    finish(loaded.folder)


@app.command(cls=Command)
def stats(folder: Path = typer.Argument(help="Folder of a cleaning run.")) -> None:
    """Write the report of a cleaning run: lengths, reasons with examples, shares."""
    finish(folder)


@app.command(cls=Command)
def inspect(
    source: str = SOURCE,
    overrides: list[str] = OVERRIDES,
    rows: int = ROWS,
    model: str | None = MODEL,
) -> None:
    """Print training rows as the model sees them; tokens in the loss are green.

    Of a file of rows: what it is taken for, how each column is used, and its lengths.
    """
    console = Console(highlight=False, soft_wrap=True)
    if is_data(source):
        inspect_file(console, source, overrides or [], rows, model)
        return
    if model is not None:
        raise UserError("--model: is for a file of rows; a recipe names its own")

    from llamaseek.recipe.load import load_recipe
    from llamaseek.train.jobs.preview import training_rows

    loaded = load_recipe(find_recipe(source), overrides or [])
    print_rows(console, training_rows(loaded, rows), loaded)


def is_data(source: str) -> bool:
    """Whether this names a file, folder, glob or data set, and no recipe."""
    path = Path(source).expanduser()
    found = path.exists() or source.startswith("hf://") or glob.has_magic(source)
    return found and path.suffix not in (".yaml", ".yml")


def inspect_file(
    console: Console, source: str, overrides: list[str], rows: int, model: str | None
) -> None:
    """Print what the rows are, each column's use, their lengths, and the first of them.

    `overrides` are of the recipe's section `data`, as `data.columns={prompt: q}`. Lengths are
    counted and control tokens shown with the tokenizer of `model`.
    """
    from llamaseek.data.detect import detect
    from llamaseek.text.tokenizer import Tokenizer
    from llamaseek.train.jobs.preview_file import ShownRows

    data = data_section(overrides)
    found = detect([source], data.columns, data.encoding, data.format)
    console.print(f"{source}: {found.sentence}", markup=False)
    if found.uses:
        console.print(columns_table(found))
    tokenizer = Tokenizer.load(tokenizer_folder(Path(model))) if model else None
    shown = ShownRows(found, data, tokenizer, rows)
    if found.kind == "text":
        shown.read_texts(source)
    else:
        shown.read_rows(source)
    if shown.lengths:
        low, high, total = min(shown.lengths), max(shown.lengths), sum(shown.lengths)
        middle = median(shown.lengths)
        console.print(f"tokens a row: {low:,} to {high:,}, median {middle:,.0f}, {total:,} in all")
    for place, spans in shown.rows:
        console.rule(Text(place), align="left", characters="─")
        console.print(colored(spans))
    for line in shown.notes:
        console.print(line, markup=False)
    console.print(LEGEND, style="dim")


def data_section(overrides: list[str]) -> DataRecipe:
    """The section `data` that overrides make; UserError for other keys."""
    plain: dict[str, Any] = {}
    for override in overrides:
        apply_override(plain, override)
    return validated(DataRecipe, plain.pop("data", {}) | plain, "data")


def columns_table(found: DetectedRows) -> Table:
    """Every column, what it is used as, and in how many rows it has a value."""
    table = Table("column", "used as", "rows")
    table.columns[2].justify = "right"
    for name, use in found.uses.items():
        style = "yellow" if name in found.unused else ""
        table.add_row(Text(name), use, f"{found.filled[name]:,}", style=style)
    return table


def colored(spans: Iterable[Span]) -> Text:
    """Text with what is in the loss in green, and the rest dimmed."""
    text = Text()
    for span in spans:
        text.append(span.text, style="green" if span.in_loss else "dim")
    return text


def print_recipe(recipe: dict[str, Any]) -> None:
    """As YAML that can be saved and run."""
    import yaml

    print(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), end="")


def finish(folder: Path) -> None:
    """Print what a run kept and removed, and write its page."""
    from llamaseek.report.data_page import write_data_report

    report = write_data_report(folder)
    print_stages(folder)
    print(f"documents  {folder / 'documents'}\nreport     {report}")
    words = ("pretrain", "RECIPE", f"data.sources=[{folder / 'documents'}]")
    print(f"read them  {quoted(program(), *words)}")


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def step_bar(name: str) -> Iterator[OnStep]:
    """A progress bar of the running step and its time; on a pipe one line per step."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: list[int] = []

        def on_step(step: str, count: int) -> None:
            if not console.is_terminal:
                console.print(f"{name}: {step} ({count} tasks)", highlight=False)
            for task in tasks:
                bar.update(task, total=1, completed=1)  # type: ignore[arg-type]
            tasks[:] = [bar.add_task(f"[bold]{name}[/] {step} ({count} tasks)", total=None)]

        yield on_step


@contextmanager
def grade_bar(name: str) -> Iterator:  # type: ignore[type-arg]
    """Documents graded so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn(f"[bold]{name}[/] grade"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C says how to resume: what is done is kept."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; to resume:\n  {this_command()}", file=sys.stderr)
        sys.exit(130)


def print_stages(folder: Path) -> None:
    """Print one line per stage: documents in, documents removed, the most frequent rule."""
    from llamaseek.report.data_page import stage_views

    stats = json.loads((folder / "stats.json").read_text())
    table = Table("stage", "came in", "left", "changed", "most often")
    for column in table.columns[1:4]:
        column.justify = "right"
    for stage in stage_views(stats):
        most = stage.rules[0] if stage.rules else None
        numbers = (f"{n:,}" for n in (stage.entered, stage.removed, stage.changed))
        table.add_row(stage.name, *numbers, f"{most.name} ({most.count:,})" if most else "")
    Console().print(table)
    read = sum(stats["read"].values())
    kept = sum(source["documents"] for source in stats["kept"].values())
    print(f"kept {kept:,} of {read:,} documents ({kept / max(read, 1):.1%})")


def print_rows(console: Console, rows: Iterable[ShownRow], recipe: Recipe) -> None:
    """Print each row with its documents; tokens in the loss are green, others dimmed."""
    for number, row in enumerate(rows):
        in_loss = f"{row.in_loss} of {row.tokens} tokens in the loss"
        padded = f", {row.padding} padding" if row.padding else ""
        count = f"{len(row.documents)} document{'s' if len(row.documents) > 1 else ''}"
        title = f"row {number}: {count}, {in_loss}{padded} ({recipe.data.length} a row)"
        console.rule(title, align="left", characters="─")
        for document in row.documents:
            console.print(colored(document))
            console.print()
        for column, value in (row.judged or {}).items():
            console.print(f"{column}: {value}", markup=False)
    for line in row_notes(recipe):
        console.print(line, style="dim")


def row_notes(recipe: Recipe) -> list[str]:
    """The legend of the colors in this recipe."""
    if recipe.stage == "pretrain":
        return ["Green: what has a loss. Dimmed: a document's first token, which nothing predicts."]
    if recipe.stage == "reward":
        return ["Best answer first. Green: each answer's last token, where its score is."]
    if recipe.samples:
        return ["Prompts: a model answers them during the run; below each, what judges the answer."]
    return [LEGEND]
