"""Every command of README and docs that starts a server, or has lm-eval ask one, does so."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.peft import save_adapter
from llamaseek.engine.open import open_model
from llamaseek.engine.options import EngineOptions
from llamaseek.models.lora import add_lora
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import Service, make_service
from tests.cli.run import Cli
from tests.safety.crafted import guard_folder, saying_folder
from tests.serve.running import TOKENIZER, running
from tests.serve.test_lm_eval import place as lm_eval_place

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```\w*\n(?:.*\n)*?(?=```)|^(?: {4}.*\n)+", re.MULTILINE)
"""Fenced or indented blocks: a sentence may begin with a program's name too."""
HELLO = [{"role": "user", "content": "Hello"}]
lm_eval_folder = pytest.fixture(scope="module")(lm_eval_place.__wrapped__)  # type: ignore[attr-defined]


def commands(program: str) -> list[str]:
    """All lines of the pages' code that begin with a program, continued lines joined."""
    code = "".join(block for page in PAGES for block in CODE.findall(page.read_text()))
    lines = re.findall(rf"^(?: {{4}})?({program} .*)$", code.replace("\\\n", " "), re.MULTILINE)
    return [" ".join(line.split()) for line in lines]


SERVE = [line for line in commands("llamaseek serve") if "--help" not in line]
LM_EVAL = commands("lm-eval")


def test_the_commands_are_found() -> None:
    assert len(SERVE) >= 4 and len(LM_EVAL) >= 1
    assert len([line for line in SERVE if "--guard" in line]) >= 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the folders that the pages speak of."""
    folder = tmp_path_factory.mktemp("commands")
    tickets = "runs/smollm2-135m-instruct-tickets/model"
    for name in ("MODEL", "runs/mine/model", "runs/mine-dpo/model", tickets):
        saying_folder(folder / name, "The old frog. It ran!")
    guard_folder(folder / "GUARD")
    model = load_model(folder / "MODEL")
    add_lora(model, 2, 4.0, ["q_proj"])
    save_adapter(model, folder / "runs" / "pirate" / "adapter", "MODEL")
    yield folder


@pytest.mark.parametrize("command", SERVE)
def test_servers_start_and_answer(
    command: str, place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    served: list[str] = []

    def serve(service: Service) -> None:
        with running(service) as run:
            names = [each["id"] for each in run.client.get("/v1/models").json()["data"]]
            for name in names:
                body = {"model": name, "messages": HELLO, "temperature": 0}
                answer = run.client.post("/v1/chat/completions", json=body).json()
                assert answer["choices"][0]["message"]["content"] == "The old frog. It ran!"
                assert ("guard" in answer["choices"][0]) == ("--guard" in command)
            served.extend(names)

    monkeypatch.setattr("llamaseek.serve.server.serve", serve)
    words = shlex.split(re.sub(r"--device \S+", "--device cpu", command))[1:]
    done = cli(*words, "--port", "0")
    assert done.code == 0 and served, done.err


@pytest.mark.parametrize("command", LM_EVAL)
def test_lm_eval_asks_the_server(
    command: str, lm_eval_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.tasks import TaskManager

    made = TaskManager.__init__  # reading the tasks that come with it takes six seconds
    alone = {"include_defaults": False}
    monkeypatch.setattr(TaskManager, "__init__", lambda *a, **k: made(*a, **{**k, **alone}))
    save_model(load_model(lm_eval_folder / "model"), lm_eval_folder / "runs" / "mine" / "model")
    TOKENIZER.save(lm_eval_folder / "runs" / "mine" / "model")
    monkeypatch.chdir(lm_eval_folder)
    options = ServeOptions(port=0, name="mine")
    model = open_model(Path("model"), device="cpu", dtype="fp32")
    service = make_service(model, Path("model"), options, EngineOptions())
    with running(service) as run:
        small = command.replace("arc_easy", "choices").replace("http://127.0.0.1:8000", run.url)
        words = [*shlex.split(small), "--include_path", "."]
        monkeypatch.setattr(sys, "argv", words)
        cli_evaluate()
        assert run.idle() and run.service.engine.statistics.finished >= 24
    assert re.search(r"\|choices\|.*\|acc", capsys.readouterr().out.replace(" ", ""))
