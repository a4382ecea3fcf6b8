"""`serve --guard` and `chat --guard` as they are started, with a guard that is a folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaseek.checkpoints.hf import save_model
from llamaseek.engine.open import open_model
from llamaseek.engine.options import EngineOptions
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import load_served_guard, make_service
from llamaseek.text.guard_prompt import PUBLISHED
from tests.cli.run import Cli
from tests.safety.crafted import MARK, guard_folder, saying_folder
from tests.safety.scripted import guard_tokenizer, small_model
from tests.serve.running import running

CHAT = "/v1/chat/completions"
SAFE, REST = "The old frog. ", f"{MARK} ran!"
HELLO = [{"role": "user", "content": "Hello"}]
BAD = [{"role": "user", "content": f"Hello {MARK}"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that says something unsafe in its second sentence, a guard, and one that is none."""
    place = tmp_path_factory.mktemp("guarded")
    save_model(small_model(guard_tokenizer()), place / "nonsense")
    guard_tokenizer().save(place / "nonsense")
    return {
        "model": saying_folder(place / "model", SAFE + REST),
        "guard": guard_folder(place / "guard"),
        "nonsense": place / "nonsense",
    }


def streamed(client: httpx.Client, messages: list[dict[str, str]], **body: Any) -> tuple[str, Any]:
    """The text of a streamed chat, and its last choice."""
    sent = {"model": "tiny", "messages": messages, "temperature": 0, "stream": True, **body}
    lines = client.post(CHAT, json=sent).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    return "".join(each["delta"].get("content") or "" for each in choices), choices[-1]


def check_guarded(client: httpx.Client) -> None:
    """Unsafe text is never sent, on either side; safe text comes with its verdicts."""
    said, last = streamed(client, HELLO)
    assert SAFE.startswith(said) and "frog" in said and last["finish_reason"] == "content_filter"
    assert last["guard"]["input"]["safe"] and not last["guard"]["output"]["safe"]
    assert last["guard"]["output"]["categories"][0]["code"] == "S2"
    for said, last in (streamed(client, BAD), streamed(client, [*HELLO, *BAD])):
        assert said == "" and not last["guard"]["input"]["safe"]
        assert last["finish_reason"] == "content_filter"
    said, last = streamed(client, HELLO, max_tokens=3)
    assert said and SAFE.startswith(said) and last["finish_reason"] == "length"
    assert last["guard"]["input"]["safe"] and last["guard"]["output"]["safe"]
    body = {"model": "tiny", "messages": HELLO, "temperature": 0}
    (choice,) = client.post(CHAT, json=body).json()["choices"]
    assert choice["finish_reason"] == "content_filter" and MARK not in json.dumps(choice)
    assert "S2 Non-Violent Crimes" in choice["message"]["refusal"]
    completion = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert completion.status_code == 403


def test_serve_behind_a_guard(folders: dict[str, Path]) -> None:
    words = ["serve", str(folders["model"]), "--guard", str(folders["guard"]), "--name", "tiny"]
    command = [sys.executable, "-m", "llamaseek", *words, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stdout is not None
            url = run.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, timeout=60) as client:
                check_guarded(client)
                assert client.get("/health").status_code == 200
        finally:
            run.send_signal(signal.SIGTERM)
            _, log = run.communicate(timeout=60)
    assert run.returncode == 0 and MARK not in log and "Traceback" not in log


def test_serve_behind_a_folder_that_is_no_guard_says_nothing(folders: dict[str, Path]) -> None:
    options, engine = ServeOptions(port=0, name="tiny"), EngineOptions(max_num_seqs=2)
    model = open_model(folders["model"], device="cpu", dtype="fp32")
    service = make_service(model, folders["model"], options, engine)
    service.guard = load_served_guard(folders["nonsense"], "cpu", PUBLISHED, options, engine)
    with running(service) as run:
        for messages in (HELLO, BAD):
            said, last = streamed(run.client, messages)
            assert said == "" and last["finish_reason"] == "content_filter"
            assert last["guard"] == {"error": "the guard gave no verdict"}
        assert run.service.engine.statistics.steps == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guard", "nowhere"], "nowhere"),
        (["--guard", "GUARD", "--guard-drop", "S99"], "category 'S99' is unknown"),
        (["--guard", "GUARD", "--guard-categories", "nowhere.json"], "nowhere.json"),
    ],
)
def test_a_guard_that_cannot_be_had_starts_nothing(
    cli: Cli, folders: dict[str, Path], words: list[str], said: str
) -> None:
    given = [str(folders["guard"]) if word == "GUARD" else word for word in words]
    done = cli("serve", str(folders["model"]), "--port", "0", *given)
    assert done.code == 2 and said in done.err and done.out == ""
    assert done.err.startswith("error: ") and done.err.count("\n") == 1


def chat(cli: Cli, folders: dict[str, Path], guard: str) -> str:
    """What a chat prints: one message that is safe, one that is not, `/quit`."""
    typed = f"Hello\nHello {MARK}\n"
    done = cli("chat", str(folders["model"]), "--guard", str(folders[guard]), stdin=typed)
    assert done.code == 0 and done.err == ""
    return done.out


def test_chat_behind_a_guard(cli: Cli, folders: dict[str, Path]) -> None:
    first, second, third = chat(cli, folders, "guard").splitlines()
    assert first in (SAFE, SAFE.strip())
    assert second.startswith("[the answer was refused by the guard (unsafe: S2")
    assert third.startswith("[the message was refused by the guard (unsafe: S2")


def test_chat_behind_a_folder_that_is_no_guard(cli: Cli, folders: dict[str, Path]) -> None:
    for line in chat(cli, folders, "nonsense").splitlines():
        assert line.startswith("[the message was refused by the guard (no verdict: ")
