"""`finetune`: a model and a file of rows in, a tuned model and what it gained out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamaseek.cli.shared import model_folder, program, say_started
from llamaseek.errors import UserError, quoted

if TYPE_CHECKING:
    from llamaseek.recipe.schema import Recipe
    from llamaseek.report.outcome import Outcome
    from llamaseek.train.finetune.choose import TuningPlan

MODEL = typer.Argument(
    metavar="MODEL",
    help="The model to start from: a folder, a .gguf file or a published name.",
    callback=model_folder,
)
WORDS = typer.Argument(
    metavar="DATA... [KEY=VALUE]...",
    help="Files, folders or globs of rows or text; then overrides of recipe fields.",
)
LORA = typer.Option(False, "--lora", help="Train adapters; the default for a real model.")
QLORA = typer.Option(False, "--qlora", help="Train adapters on a base in 4 bits.")
FULL = typer.Option(False, "--full", help="Train all weights.")
EPOCHS = typer.Option(
    None,
    min=0.01,
    help="Passes over the rows.",
    show_default="enough for 60 steps, at most 3; labels 5",
)
OUT = typer.Option(None, help="The run folder.", show_default="runs/MODEL-DATA")
OVERWRITE = typer.Option(False, "--overwrite", help="Replace an existing run and start again.")
DRY_RUN = typer.Option(False, "--dry-run", help="Print the plan and the recipe; do not train.")
JUDGE = typer.Option(
    None, metavar="MODEL", help="A model that compares the answers before and after: the win rate."
)
JUDGE_URL = typer.Option(None, help="The OpenAI API where MODEL of --judge is served.")
SHOWN = 10  # samples side by side


def finetune(
    model: Path = MODEL,
    words: list[str] = WORDS,
    lora: bool = LORA,
    qlora: bool = QLORA,
    full: bool = FULL,
    epochs: float = EPOCHS,
    out: str = OUT,
    overwrite: bool = OVERWRITE,
    dry_run: bool = DRY_RUN,
    judge: str = JUDGE,
    judge_url: str = JUDGE_URL,
) -> None:
    """Fine-tune a model on your own rows or text, and compare it with what it was.

    Rows are CSV, JSON or JSONL, parquet and others: conversations, prompts with answers, labelled
    texts, preference pairs, rated answers; folders of text continue pre-training. What is chosen
    for you is printed as a recipe, and KEY=VALUE changes any field of it.

    Columns of other names: 'data.columns={text: Message, label: Queue}', or {prompt: Question,
    completion: Reply}. `llamaseek data inspect FILE` shows what a file is taken for.
    """
    say_started("looking at the rows")
    from llamaseek.train.finetune.choose import Wanted, choose

    methods = {"lora": lora, "qlora": qlora, "full": full}
    chosen = [name for name, asked in methods.items() if asked]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    sources = [word for word in words if word not in overrides]
    if not sources:
        raise UserError("DATA: is missing; give files, folders or globs of rows or text")
    method = chosen[0] if chosen else None
    plan = choose(Wanted(model, sources, method, epochs, out, overrides))
    if judge and (plan.recipe.stage != "sft" or not plan.recipe.train.samples):
        raise UserError("--judge: compares answers to held-out rows, and this run has none")
    show_plan(plan)
    if not dry_run:
        train_and_compare(plan.recipe, overwrite, (judge, judge_url) if judge else None)


def show_plan(plan: TuningPlan) -> None:
    """Print what the rows are, what will be done, and the recipe of it."""
    import yaml

    from llamaseek.train.finetune.text import plan_line

    print(f"data     {plan.rows.sentence}\nplan     {plan_line(plan)}\nrecipe")
    fields = plan.recipe.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    print("".join(f"  {line}\n" for line in text.splitlines()), end="", flush=True)


def train_and_compare(
    recipe: Recipe, overwrite: bool, judge: tuple[str, str | None] | None = None
) -> None:
    """Run the recipe; print what changed on held-out rows, and the next commands."""
    from llamaseek.api import train
    from llamaseek.evals.judge import judge_run
    from llamaseek.report.outcome import read_outcome
    from llamaseek.report.page import write_report
    from llamaseek.train.job import Interrupted

    try:
        run = train(recipe, overwrite=overwrite)
    except Interrupted as stop:
        again = (recipe.stage, recipe.folder / "recipe.yaml", "--resume")
        print(f"{stop}; to resume:\n  {quoted(program(), *again)}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    if judge is not None:
        judge_run(run.folder, *judge)
        write_report(run.folder)
    found = read_outcome(run.folder)
    show_outcome(found)
    warn_of_loss(found)
    adapter = run.folder / "adapter"
    print(f"model    {run.model_folder}")
    if adapter.is_dir():
        print(f"adapter  {adapter}")
    print(f"report   {run.folder / 'report.html'}")
    for title, words in next_commands(recipe, run.model_folder).items():
        print(f"{title:<8} {quoted(program(), *words)}")


def warn_of_loss(outcome: Outcome) -> None:
    """Say so where the run made nothing better on rows that it was not trained on."""
    losses = [one for one in outcome.measures if one.name in ("loss", "bits per byte")]
    if losses and all(one.before is not None and one.after >= one.before for one in losses):
        print("warning: the held-out loss did not fall; try a lower train.lr", file=sys.stderr)


def next_commands(recipe: Recipe, model: Path) -> dict[str, tuple[str | Path, ...]]:
    """The words of the commands that use a tuned model, by what they do; a reward model is used
    by reinforcement learning.
    """
    if recipe.stage == "reward":
        rewards = f"rollout.rewards=[{{kind: model, model: {model}}}]"
        return {"grpo": ("grpo", "smollm2-135m-grpo", rewards)}
    first: tuple[str | Path, ...] = ("chat", model)
    if recipe.stage == "pretrain":
        first = ("generate", model, "Once upon a time")
    served = ("serve", model, "--name", recipe.name)
    return {
        str(first[0]): first,
        "serve": served,
        "export": ("convert", model, model.parent / f"{recipe.name}.gguf"),
    }


def show_outcome(outcome: Outcome) -> None:
    """Figures before and after, the confusion of labels, and samples side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(outcome.title, "before", "after", box=None, padding=(0, 3, 0, 0))
    for one in outcome.measures:
        table.add_row(one.name, shown(one, one.before), f"[bold]{shown(one, one.after)}[/bold]")
    console.print(table)
    if outcome.confusion is not None:
        show_confusion(console, outcome.confusion)
    samples = Table("held out", "wanted", "before", "after", show_lines=True, expand=True)
    for sample in outcome.samples[:SHOWN]:
        cells = (sample.prompt, sample.wanted, sample.before, sample.after)
        samples.add_row(*(Text(cut(cell), overflow="fold") for cell in cells))
    if outcome.samples:
        console.print(samples)


def show_confusion(console: Any, confusion: Any) -> None:
    """Rows of each label by the label that they were given after the run."""
    from rich.table import Table

    from llamaseek.evals.compare import OTHER

    table = Table("wanted \\ answered", *confusion.labels, OTHER, box=None, padding=(0, 2, 0, 0))
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        table.add_row(label, *(str(count or "·") for count in counts))
    console.print(table)


def shown(measure: Any, value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return "–"
    return f"{value:.1%}" if measure.share else f"{value:.3f}{measure.unit}"


def cut(text: str, most: int = 200) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else text[: most - 1] + "…"
