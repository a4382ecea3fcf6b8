"""The examples of the help: each parses, and the recipes and models it names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from llamaseek.checkpoints import sources
from llamaseek.cli.main import app
from llamaseek.cli.words import EXAMPLES
from llamaseek.recipe.reading import find_recipe
from tests.cli.run import Cli

LINES = [(command, line) for command, lines in EXAMPLES.items() for line in lines]
BY_RECIPE = {"pretrain", "sft", "reward", "dpo", "grpo", "ppo", "train-plan", "data clean"}


@pytest.mark.parametrize(("command", "line"), LINES, ids=[line for _, line in LINES])
def test_an_example_parses(
    command: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {*sources.ENTRIES, *sources.WHEELS}
    monkeypatch.setattr(sources, "cached", lambda name: tmp_path if name in known else None)
    monkeypatch.chdir(tmp_path)
    for word in re.findall(r"(?:models|runs)/[\w./-]+", line):  # what a user has made before
        Path(word).mkdir(parents=True, exist_ok=True)
    found = typer.main.get_command(app)
    context = found.make_context("llamaseek", [], resilient_parsing=True)
    words = shlex.split(line)
    assert " ".join(words).startswith(command)
    for name in command.split():
        found = found.get_command(context, words.pop(0))  # type: ignore[attr-defined]
        assert found is not None, name
        context = found.make_context(name, [], parent=context, resilient_parsing=True)
    found.make_context(command, words, parent=context.parent)


@pytest.mark.parametrize(
    "line", [line for command, line in LINES if command in BY_RECIPE and "my-recipe" not in line]
)
def test_the_recipe_of_an_example_exists(line: str) -> None:
    words = shlex.split(line)
    assert find_recipe(words[2 if words[0] == "data" else 1]).exists()


def test_every_command_has_examples_in_its_help(cli: Cli) -> None:
    group = typer.main.get_command(app)
    names = set(group.commands)  # type: ignore[attr-defined]
    assert names - {"data", "herd", "tokenizer"} <= set(EXAMPLES)
    shown = cli("quantize", "--help").out
    assert "Examples:" in shown and "models/my-llama-4bit --bits 4" in shown


def test_brackets_of_names_are_shown(cli: Cli) -> None:
    assert "[@REVISION]" in cli("generate", "--help").out.replace("\n", "")
