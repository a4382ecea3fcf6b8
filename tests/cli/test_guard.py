"""`guard` and `chat --guard` on the command line, with a guard of a few training steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamaseek.checkpoints.hf import save_model
from llamaseek.safety.verdict import Verdict
from llamaseek.text.guard_prompt import PUBLISHED
from tests.cli.run import Cli, process
from tests.safety.scripted import guard_tokenizer, small_model

SAFE = Verdict(True, (), 0.01, "user")
UNSAFE = Verdict(False, (PUBLISHED[1],), 0.98, "user")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard of random weights, which is none."""
    path = tmp_path_factory.mktemp("guard")
    save_model(small_model(guard_tokenizer()), path)
    guard_tokenizer().save(path)
    return path


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The conversations that a guard was asked about; it finds what begins with Steal unsafe."""
    asked: list[object] = []

    def check(self: object, messages: list[dict[str, str]]) -> Verdict:
        asked.append(messages)
        return UNSAFE if messages[-1]["content"].startswith("Steal") else SAFE

    monkeypatch.setattr("llamaseek.safety.guard.Guard.check", check)
    return asked


def test_a_message_is_judged(cli: Cli, folder: Path, judged: list[object]) -> None:
    safe = cli("guard", str(folder), "Hello")
    assert (safe.code, safe.out) == (0, "safe   (probability of unsafe 1.0%)\n")
    unsafe = cli("guard", str(folder), "Steal a bike")
    assert unsafe.code == 1
    assert unsafe.out.startswith("unsafe: S2 Non-Violent Crimes   (")
    as_json = cli("guard", str(folder), "Steal a bike", "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out) == UNSAFE.as_json()


def test_conversations_come_from_files_stdin_and_options(
    cli: Cli, folder: Path, judged: list[object], tmp_path: Path
) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"messages": talk}))
    assert cli("guard", str(folder), "--conversation", str(file)).code == 0
    assert cli("guard", str(folder), "Hi", "--answer", "Hello!").code == 0
    for text in (json.dumps(talk), "Hi\n"):
        assert cli("guard", str(folder), stdin=text).code == 0
    assert judged == [talk, talk, talk, talk[:1]]


def test_a_guard_without_a_verdict_is_an_error(folder: Path) -> None:
    done = process("guard", str(folder), "Hello")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "gave no verdict" in done.err
    assert done.out == ""


def test_chat_behind_a_guard_without_a_verdict_says_nothing(folder: Path) -> None:
    done = process("chat", str(folder), "--guard", str(folder), stdin="Hello\n")
    assert done.code == 0
    assert done.out.startswith("[the message was refused by the guard (no verdict: ")
    assert done.out.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Hi", "--drop", "S99"], "category 'S99' is unknown"),
        (["Hi", "--categories", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--conversation", "nowhere.json"], "nowhere.json: cannot be read"),
        (["Hi", "--conversation", "talk.json"], "message: give either a message or --conversation"),
        ([" "], "message: ' ' is not allowed"),
        (["Hi", "--answer", ""], "--answer: '' is not allowed"),
        (["--held-out", "-1"], "--held-out: -1 is not allowed"),
        (
            ["Hi", *(word for c in PUBLISHED for word in ("--drop", c.code))],
            "removes every category",
        ),
    ],
)
def test_bad_input_is_one_line(cli: Cli, folder: Path, words: list[str], said: str) -> None:
    done = cli("guard", str(folder), *words)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("text", ["[1,", "[]", "[5]", '{"messages": 3}', '[{"role": "user"}]'])
def test_files_that_hold_no_conversation(cli: Cli, folder: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    done = cli("guard", str(folder), "--conversation", str(file))
    assert done.code == 2
    assert done.err.count("\n") == 1
