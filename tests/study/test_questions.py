"""The lecture's class questions: the page, the command, and their answers."""

from __future__ import annotations

import os
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from llamaseek.cli.main import app
from llamaseek.study.questions import QUESTIONS, markdown
from tests.cli.run import Cli

PAGE = Path(__file__).parents[2] / "docs" / "questions.md"
LECTURE = Path(os.environ.get("LLAMASEEK_SHARED_DATA", "/nowhere")).parent / "lecture.txt"


def test_the_page_is_the_same_text() -> None:
    assert PAGE.read_text() == markdown(), "python -m llamaseek.study.questions writes it"


def test_the_command_prints_one_question_or_all(cli: Cli) -> None:
    assert cli("questions", "5").out.count("  * 3. 108k") == 1
    everything = cli("questions").out
    assert [f"Question {number}." in everything for number in QUESTIONS] == [True] * 6


def test_another_number_is_refused_with_the_known_ones(cli: Cli) -> None:
    done = cli("questions", "1")
    assert done.code == 2 and "question" in done.err and "6" in done.err


@pytest.mark.parametrize("number", QUESTIONS)
def test_what_it_names_is_there(number: int) -> None:
    """The module or class that shows it, and the command's verb."""
    question = QUESTIONS[number]
    for name in question.shown_by.split(" and "):
        module, _, last = name.rpartition(".")
        assert hasattr(import_module(module), last) or import_module(name)
    assert shlex.split(question.command)[1] in typer.main.get_command(app).commands
    assert set(question.answers) <= set(range(1, len(question.options) + 1))


@pytest.mark.skipif(not LECTURE.is_file(), reason="the lecture's text is not at hand")
def test_the_lecture_asks_these() -> None:
    text = LECTURE.read_text()
    for number in QUESTIONS:
        assert f"ICE #{number}" in text
