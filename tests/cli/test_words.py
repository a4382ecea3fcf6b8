"""What people type who come from other tools is answered with what to type here."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from llamaseek.cli.words import COMMANDS, OPTIONS
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.reading import ELSEWHERE, find_recipe
from tests.cli.run import Cli


@pytest.mark.parametrize("word", COMMANDS)
def test_a_command_of_another_tool(cli: Cli, word: str) -> None:
    done = cli(word, "model")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"error: {word}: no such command; ")


@pytest.mark.parametrize("word", OPTIONS)
def test_an_option_of_another_tool(cli: Cli, word: str) -> None:
    done = cli("serve", "model", f"{word}=2")
    assert (done.code, done.err) == (
        2,
        f"error: {word}: no such option; {OPTIONS[word]}\n",
    )


@pytest.mark.parametrize("word", ELSEWHERE)
def test_a_recipe_key_of_another_tool(cli: Cli, word: str) -> None:
    for key in (word, f"train.{word}"):
        if key == ELSEWHERE[word].partition(",")[0]:
            continue  # our own name, in its section
        done = cli("sft", "quickstart-sft", f"{key}=1")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err == f"error: recipe key {key}: no such key; use {ELSEWHERE[word]}\n"


@pytest.mark.parametrize("named", sorted({hint.partition(",")[0] for hint in ELSEWHERE.values()}))
def test_the_key_to_use_instead_exists(named: str) -> None:
    found: Any = load_recipe(find_recipe("quickstart-sft"), ["lora.rank=8"]).model_dump()
    for part in named.split("."):
        found = found[part]


def test_help_is_in_groups_and_every_command_in_one(cli: Cli) -> None:
    """The words of the first screen: what to start with, to train, to use."""
    shown = cli("--help").out
    for group, some in (
        ("Start", ("quickstart", "download", "doctor")),
        ("Train", ("finetune", "pretrain", "sft", "dpo", "grpo")),
        ("Use", ("generate", "chat", "serve", "eval")),
        ("Checkpoints", ("inspect", "convert", "quantize", "push")),
    ):
        panel = shown.split(f"─ {group} ─")[1].split("╰")[0]
        rows = [line.strip("│ ").split(" ")[0] for line in panel.splitlines()]
        assert set(some) <= set(rows), group
    assert "─ Commands ─" not in shown  # nothing is left without a group


@pytest.mark.parametrize(
    ("typed", "offered"), [("fine", "finetune"), ("serve --max-num-s", "--max-num-seqs")]
)
def test_the_shell_completes_commands_and_options(typed: str, offered: str) -> None:
    words = f"llamaseek {typed}"
    asked = {
        "_LLAMASEEK_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = "from llamaseek.cli.main import main; main()"
    completed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert offered in completed.stdout.split()
