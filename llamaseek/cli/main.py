"""The command line: one command per file; a user error is one line on stderr and exit code 2."""

from __future__ import annotations

import gc
import os
import sys
import time

import typer

from llamaseek import __version__
from llamaseek.cli import data, herd
from llamaseek.cli import tokenize as tokenizer
from llamaseek.cli.chat import chat
from llamaseek.cli.evaluate import evaluate
from llamaseek.cli.finetune import finetune
from llamaseek.cli.folders import average, convert, download, inspect, push, quantize
from llamaseek.cli.generate import fill, generate
from llamaseek.cli.guard import guard
from llamaseek.cli.plan import plan
from llamaseek.cli.quickstart import doctor, quickstart
from llamaseek.cli.serve import serve
from llamaseek.cli.study import questions, study
from llamaseek.cli.tokenize import tokenize
from llamaseek.cli.train import dpo, grpo, ppo, pretrain, recipes, report, reward, sft
from llamaseek.cli.train_plan import train_plan
from llamaseek.cli.words import Command, Group
from llamaseek.errors import UserError
from llamaseek.runtime.world import is_first_rank

PATIENCE = 15.0  # seconds in which torchrun ends the other ranks once the first has spoken
app = typer.Typer(
    name="llamaseek",
    help="Train, fine-tune, evaluate and serve Llama 3 and DeepSeek-V3 models.",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PANELS = {
    "Start": (quickstart, download, doctor),
    "Train": (finetune, pretrain, sft, reward, dpo, grpo, ppo, recipes, report),
    "Use": (generate, chat, serve, fill, guard),
    "Checkpoints": (inspect, convert, quantize, average, push),
    "Plan and study": (plan, train_plan, study, questions),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)
TEXT = "Data and tokens"
app.command(cls=Command, rich_help_panel=TEXT)(tokenize)
app.command("eval", cls=Command, rich_help_panel="Use")(evaluate)
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel=TEXT)
app.add_typer(data.app, name="data", rich_help_panel=TEXT)
app.add_typer(herd.app, name="herd", rich_help_panel="Plan and study")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"llamaseek {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Train, fine-tune, evaluate and serve Llama 3 and DeepSeek-V3 models."""


def main() -> None:
    """Entry point of the `llamaseek` command.

    Importing PyTorch makes half a million objects that stay. With Python's own thresholds the
    garbage collector looks at them again and again: a sixth of the time to a first token.
    """
    gc.set_threshold(50_000, 20, 100)
    try:
        app(prog_name="llamaseek")
    except UserError as error:
        if not is_first_rank():
            time.sleep(PATIENCE)  # the first rank says it, unless the error is not its own
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader has gone (`llamaseek … | head`); that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
