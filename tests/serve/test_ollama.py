"""Ollama's API: what it answers, and what it refuses by which name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.running import Running
from tests.serve.spoken import STORY, Speech

HELLO = [{"role": "user", "content": "hi"}]


def test_lines_and_whole(server: Running, speech: Speech) -> None:
    speech.say(STORY)
    cold = {"options": {"temperature": 0, "num_ctx": 512}, "keep_alive": "5m"}
    for path, body in (("chat", {"messages": HELLO}), ("generate", {"prompt": "hi"})):
        answer = server.post(f"/api/{path}", **body, **cold)
        assert answer.headers["content-type"] == "application/x-ndjson"
        *parts, last = [json.loads(line) for line in answer.text.splitlines()]
        texts = [p["response"] if path == "generate" else p["message"]["content"] for p in parts]
        assert "".join(texts) == STORY and not any(part["done"] for part in parts)
        assert last["done"] and last["done_reason"] == "stop"
        assert last["eval_count"] == len(speech.ids) - 1
        whole = server.post(f"/api/{path}", **body, **cold, stream=False).json()
        text = whole["response"] if path == "generate" else whole["message"]["content"]
        assert text == STORY and whole["done"] and whole["eval_count"] == last["eval_count"]
    short = server.post("/api/generate", prompt="hi", stream=False, options={"num_predict": 3})
    assert short.json()["done_reason"] == "length" and short.json()["eval_count"] == 3


def test_what_there_is(server: Running) -> None:
    (listed,) = server.client.get("/api/tags").json()["models"]
    assert listed["name"] == "tiny" and listed["size"] > 1000
    shown = server.post("/api/show").json()
    context = server.service.engine.context
    assert context in shown["model_info"].values() and "tools" in shown["capabilities"]
    assert server.client.post("/api/show", json={"model": "other"}).status_code == 404
    assert server.client.get("/api/version").json()["version"]
    tagged = {"model": "tiny:latest", "messages": HELLO, "stream": False}
    assert server.client.post("/api/chat", json=tagged).status_code == 200


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"options": {"num_ctx": 10**6}}, "options.num_ctx"),
    ({"options": {"mirostat": 2}}, "options.mirostat"),
    ({"options": {"temperature": -1}}, "options.temperature"),
    ({"options": {"num_predict": 0}}, "options.num_predict"),
    ({"options": {"stop": ["x"] * 17}}, "options.stop"),
    ({"format": {"not": {}}}, "format"),
    ({"format": "xml"}, "format"),
    ({"think": True}, "think"),
    ({"messages": [{"role": "user", "content": "x", "images": ["a"]}]}, "messages[0].images"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
]


@pytest.mark.parametrize(("body", "name"), REFUSED)
def test_what_cannot_be_answered_is_named(server: Running, body: dict[str, Any], name: str) -> None:
    answer = server.post("/api/chat", **{"messages": HELLO, **body})
    assert answer.status_code == 400 and set(answer.json()) == {"error"}
    assert answer.json()["error"].startswith(f"{name}: "), answer.text
