"""The training commands: run a recipe with overrides into its run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import typer

from llamaseek.api import check_recipe, train
from llamaseek.cli.shared import program, say_started, this_command
from llamaseek.errors import UserError, quoted
from llamaseek.recipe.keys import check_allowed
from llamaseek.recipe.schema import Recipe
from llamaseek.recipe.stages import STAGES
from llamaseek.runtime.world import is_first_rank
from llamaseek.text.special import MASK_WORD

RECIPE = typer.Argument(help="A recipe file, or the name of a bundled recipe.")
OVERRIDES = typer.Argument(
    None, metavar="[KEY=VALUE]...", help="Overrides of recipe fields, e.g. train.lr=1e-3."
)
RESUME = typer.Option(False, "--resume", help="Resume from the newest checkpoint, bit-exactly.")
AUTO_RESUME = typer.Option(
    False, "--auto-resume", help="Resume if there is a checkpoint, else start; for launchers."
)
OVERWRITE = typer.Option(False, "--overwrite", help="Replace an existing run and start again.")
ALLOW_CHANGE = typer.Option(
    [],
    "--allow-change",
    metavar="KEY",
    help="Resume although this recipe field, or section, has changed; repeatable.",
)
DRY_RUN = typer.Option(False, "--dry-run", help="Open every input, check the recipe and print it.")


def verb(stage: str, summary: str) -> Callable[..., None]:
    """The command of a stage; all stages share one implementation."""

    def command(
        recipe: str = RECIPE,
        overrides: list[str] = OVERRIDES,
        resume: bool = RESUME,
        auto_resume: bool = AUTO_RESUME,
        overwrite: bool = OVERWRITE,
        allow_change: list[str] = ALLOW_CHANGE,
        dry_run: bool = DRY_RUN,
    ) -> None:
        ways = {"--resume": resume, "--auto-resume": auto_resume, "--overwrite": overwrite}
        asked = [name for name, wanted in ways.items() if wanted]
        run_recipe(stage, recipe, overrides or [], asked, allow_change, dry_run)

    command.__name__, command.__doc__ = stage, summary
    return command


pretrain = verb(
    "pretrain", "Pre-train a model on text: next-token, multi-token or masked prediction."
)
sft = verb("sft", "Fine-tune a model on conversations; the loss is on the answers.")
dpo = verb("dpo", "Train a model on preference pairs with direct preference optimization.")
grpo = verb("grpo", "Group relative policy optimization with verifiable rewards or a reward model.")
ppo = verb(
    "ppo", "Proximal policy optimization with a reward model, a value head and a KL penalty."
)
reward = verb("reward", "Train a reward model on ranked answers.")


def run_recipe(
    stage: str,
    wanted: str,
    overrides: list[str],
    asked: list[str],
    allow_change: list[str],
    dry_run: bool,
) -> None:
    """Run a training command; checks the recipe before anything heavy is imported.

    `asked` is how to begin: `--resume`, `--auto-resume`, `--overwrite` or nothing.
    """
    recipe = Recipe.load(wanted, overrides)
    if recipe.stage != stage:
        raise UserError(f"stage: {wanted} is a {recipe.stage} recipe; use llamaseek {recipe.stage}")
    if dry_run:
        import yaml

        from llamaseek.train.preflight import inputs_found

        checked = check_recipe(wanted, overrides)
        found = list(inputs_found(checked))  # before anything is printed: it may be an error
        print("\n".join(found), file=sys.stderr)
        print(yaml.safe_dump(checked.model_dump(mode="json"), sort_keys=False), end="")
        return
    if len(asked) > 1:
        raise UserError(f"{asked[0]} and {asked[1]} exclude each other")
    resume: bool | Literal["auto"] = "auto" if "--auto-resume" in asked else "--resume" in asked
    if allow_change and not resume:
        raise UserError("--allow-change: is for --resume and --auto-resume")
    check_allowed(allow_change)

    say_started(f"{recipe.name}: {stage}, reading the model and the data")
    from llamaseek.train.job import Interrupted

    try:
        run = train(
            wanted,
            overrides,
            resume=resume,
            overwrite="--overwrite" in asked,
            allow_change=allow_change,
        )
    except Interrupted as stop:
        if is_first_rank():
            command = this_command("--resume").replace(" --overwrite", "")
            command = command.replace(" --auto-resume", "")
            print(f"{stop}; to resume:\n  {command}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    if not is_first_rank():
        return
    print(f"model   {run.model_folder}\nreport  {run.folder / 'report.html'}")
    words = next_words(recipe, run.model_folder)
    if words:
        print(f"try     {quoted(program(), *words)}")


def next_words(recipe: Recipe, model: Path) -> list[str | Path]:
    """The words of the command that uses a trained model; none for a reward model."""
    kind = STAGES[recipe.stage]
    if recipe.train.objective == "masked":
        return ["fill", model, f"The red {MASK_WORD} chased"]
    if not kind.generates:
        return []
    return ["chat" if kind.chats else "generate", model]


def recipes() -> None:
    """List the bundled recipes: what each is for, and what it needs by the planner."""
    from rich.table import Table

    from llamaseek.cli.shared import wide_console
    from llamaseek.plan.catalog import catalog

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    for title in ("command", "for", "GPU, memory, time"):
        table.add_column(title)
    for entry in catalog():
        needs = ", ".join(filter(None, (entry.gpu, entry.memory, entry.time)))
        table.add_row(entry.name, entry.stage, entry.purpose, needs)
    wide_console().print(table)


def report(
    folder: Path = typer.Argument(help="A run folder, or the folder of a quickstart."),
) -> None:
    """Write report.html of a run: curves, results before and after, commands."""
    from llamaseek.report.page import write_report

    print(write_report(folder))
