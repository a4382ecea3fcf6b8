"""The training verbs: a recipe with overrides, into its run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from llamaseek.cli.shared import program, this_command
from llamaseek.errors import UserError
from llamaseek.recipe.keys import check_allowed
from llamaseek.recipe.load import find_recipe, load_recipe
from llamaseek.runtime.check import resolve
from llamaseek.runtime.world import is_first_rank, started_ranks
from llamaseek.train.saving.reads import check_reads, check_recipe_file

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
DRY_RUN = typer.Option(False, "--dry-run", help="Check the recipe and print it without training.")


def verb(stage: str, summary: str) -> Callable[..., None]:
    """The command of a stage; they differ in nothing but their recipes."""

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
    """Everything the verbs share; checks the recipe before anything heavy is imported.

    `asked` is how to begin: `--resume`, `--auto-resume`, `--overwrite` or nothing.
    """
    path = find_recipe(wanted)
    recipe = load_recipe(path, overrides)
    if recipe.stage != stage:
        raise UserError(f"stage: {wanted} is a {recipe.stage} recipe; use llamaseek {recipe.stage}")
    recipe = resolve(recipe, started_ranks())
    check_reads(recipe)
    check_recipe_file(path, recipe)
    if dry_run:
        import yaml

        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")
        return
    ranks = recipe.parallel.ranks
    if ranks > 1 and started_ranks() is None:
        raise UserError(
            f"parallel: is for {ranks} ranks, but one process was started; allowed: "
            f"torchrun --nproc-per-node {ranks} -m llamaseek {stage} {wanted}"
        )
    if len(asked) > 1:
        raise UserError(f"{asked[0]} and {asked[1]} exclude each other")
    if allow_change and asked not in (["--resume"], ["--auto-resume"]):
        raise UserError("--allow-change: is for --resume and --auto-resume")
    check_allowed(allow_change)

    from llamaseek.train.saving.run_folder import RunFolder

    resume = asked in (["--resume"], ["--auto-resume"])
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # a rank was lost
    if not again and asked != ["--auto-resume"]:
        RunFolder(recipe.folder).check(resume, asked == ["--overwrite"])

    from llamaseek.report.page import write_report
    from llamaseek.runtime.launch import process_group
    from llamaseek.train.job import Interrupted
    from llamaseek.train.jobs.pretrain import build_job
    from llamaseek.train.loop import train

    try:
        with process_group(recipe):
            on = resume or again
            folder = train(build_job(recipe, on), on, allow_change=allow_change)
    except Interrupted as stop:
        if is_first_rank():
            command = this_command("--resume").replace(" --overwrite", "")
            command = command.replace(" --auto-resume", "")
            print(f"{stop}; to resume:\n  {command}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    if not is_first_rank():
        return
    report = write_report(folder.path)
    print(f"model   {folder.final}\nreport  {report}")
    if stage != "reward" and recipe.train.objective != "masked":  # these cannot generate text
        verb = "generate" if stage == "pretrain" else "chat"
        print(f"try     {program()} {verb} {folder.final}")


def report(
    folder: Path = typer.Argument(help="A run folder, or the folder of a quickstart."),
) -> None:
    """Write report.html of a run: curves, results before and after, commands."""
    from llamaseek.report.page import write_report

    print(write_report(folder))
