"""Judges: a model through the engine, and one behind an OpenAI API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from llamaseek.errors import UserError
from llamaseek.evals.judge import EndpointJudge, EngineJudge, judge_prompt, read_grade
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from tests.cli.run import process
from tests.train.tiny import LLAMA_SIZES, stories, tiny_tokenizer


def test_a_model_answers_with_nothing_but_a_grade() -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = build_model(config_from_sizes("llama3", {**LLAMA_SIZES, "vocab_size": 400}))
    judge = EngineJudge(model, tokenizer, "Is it good?", 5)
    texts = [*stories()[:5], "word " * 3000]  # the last is beyond its context, and is cut
    grades = judge(texts)
    assert len(grades) == 6 and all(grade is not None and 0 <= grade <= 5 for grade in grades)
    assert grades == judge(texts)
    with pytest.raises(UserError, match=r"judge\.rubric: does not fit"):
        EngineJudge(model, tokenizer, "why " * 500, 5)(["text"])


@pytest.mark.parametrize(
    ("answer", "grade"), [("3", 3), (" Grade: 4/5", 4), ("I give it 9", None), ("none", None)]
)
def test_grades_are_read_from_answers(answer: str, grade: int | None) -> None:
    assert read_grade(answer, 5) == grade


class Api(BaseHTTPRequestHandler):
    """Grades a text by its letters, 0 or 1; breaks on the way once."""

    broken = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Api.broken or body["model"] == "absent":
            code = 404 if body["model"] == "absent" else 503
            Api.broken = False
            self.send_error(code)
            return
        content = body["messages"][0]["content"]
        text = content.split("Text:\n")[1].split("\n\nAnswer")[0]
        grade = "1" if text.startswith("good") else "0"
        answer = json.dumps({"choices": [{"message": {"content": f"Grade {grade}"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """Takes as many questions at once as a judge asks."""

    request_queue_size = 128


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_asked_again_and_read(url: str) -> None:
    judge = EndpointJudge(url, "any", "Is it good?", 1)
    assert judge(["good one", "bad one", "good two"]) == [1, 0, 1]
    with pytest.raises(UserError, match="says 404"):
        EndpointJudge(url, "absent", "Is it good?", 1)(["x"])
    with pytest.raises(UserError, match="not an http address"):
        EndpointJudge("file:///etc/passwd", "any", "", 1)
    assert "0 to 5" in judge_prompt("Is it good?", "text", 5)


def test_one_recipe_one_command(url: str, tmp_path: Path) -> None:
    rows = [
        {"text": f"{'good' if n % 2 else 'bad'} story number {n}", "id": str(n)} for n in range(200)
    ]
    (tmp_path / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "judge.yaml").write_text(
        "name: good\nsources: web.jsonl\nkeep: {at_least: 0.5}\n"
        f"judge: {{model: any, url: '{url}', best: 1, sample: 100}}\n"
    )
    done = process("data", "judge", "judge.yaml", "--workers", "1", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "same grade 100.0%" in done.out and "kept 100 of 200 documents" in done.out
    assert (tmp_path / "data" / "good" / "report.html").is_file()
    wrong = process("data", "judge", "judge.yaml", "judge.sampel=3", cwd=tmp_path)
    assert wrong.code == 2 and "did you mean 'sample'" in wrong.err
