"""What people type who come from other tools is answered with what to type here."""

from __future__ import annotations

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
    done = cli("sft", "quickstart-sft", f"train.{word}=1")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err == f"error: recipe key train.{word}: no such key; use {ELSEWHERE[word]}\n"


@pytest.mark.parametrize("named", sorted({hint.partition(",")[0] for hint in ELSEWHERE.values()}))
def test_the_key_to_use_instead_exists(named: str) -> None:
    found: Any = load_recipe(find_recipe("quickstart-sft"), []).model_dump()
    for part in named.split("."):
        found = found[part]
