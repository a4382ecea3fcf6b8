"""Ways round the guard by the other protocols: responses, messages and Ollama's routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.safety.scripted import deciding_guard
from tests.serve.running import Running, running
from tests.serve.spoken import STORY, Speech, spoken_service
from tests.serve.test_guard_views import MARK, marked

RESPONSES, MESSAGES, CHAT, GENERATE = "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"
ENUM = {"type": "object", "properties": {"a": {"type": "string", "enum": ["b", MARK]}}}
CALLED = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
USED = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}


def turn(content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


ASK = turn("Tell me a story.")
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "responses: a text": (RESPONSES, {"input": MARK}),
    "responses: a part": (
        RESPONSES, {"input": [turn([{"type": "input_text", "text": MARK}])]}),
    "responses: after an answer": (
        RESPONSES, {"input": [ASK, turn("Which?", "assistant"), turn(MARK)]}),
    "responses: a tool's description": (RESPONSES, {"input": "hi", "tools": [
        {"type": "function", "name": "f", "description": MARK, "parameters": {}}]}),
    "responses: a tool's enum": (RESPONSES, {"input": "hi", "tools": [
        {"type": "function", "name": "f", "parameters": ENUM}]}),
    "responses: a call's result": (RESPONSES, {"input": [
        ASK, CALLED, {"type": "function_call_output", "call_id": "c1", "output": MARK}]}),
    "responses: a format": (RESPONSES, {"input": "hi", "text": {
        "format": {"type": "json_schema", "name": "x", "schema": ENUM}}}),
    "messages: a text": (MESSAGES, {"messages": [turn(MARK)]}),
    "messages: a part": (MESSAGES, {"messages": [turn([{"type": "text", "text": MARK}])]}),
    "messages: the answer's beginning": (
        MESSAGES, {"messages": [ASK, turn(MARK, "assistant")]}),
    "messages: a tool's schema": (
        MESSAGES, {"messages": [ASK], "tools": [{"name": "f", "input_schema": ENUM}]}),
    "messages: a call's result": (MESSAGES, {"messages": [
        ASK, turn([USED], "assistant"),
        turn([{"type": "tool_result", "tool_use_id": "c1", "content": MARK}])]}),
    "messages: a call's values": (MESSAGES, {"messages": [
        ASK, turn([{**USED, "input": {"a": MARK}}], "assistant"),
        turn([{"type": "tool_result", "tool_use_id": "c1", "content": "fine"}])]}),
    "ollama: a chat": (CHAT, {"messages": [turn(MARK)]}),
    "ollama: a format": (CHAT, {"messages": [ASK], "format": ENUM}),
    "ollama: a prompt": (GENERATE, {"prompt": MARK}),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(spoken_service(Speech(STORY), deciding_guard(marked))) as run:
        yield run
        assert run.idle()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_reaches_the_model_unjudged(server: Running, place: str, streamed: bool) -> None:
    path, body = PLACES[place]
    limit = {"max_tokens": 5} if path == MESSAGES else {}
    asked = server.service.engine.statistics.prompt
    answer = server.post(path, **{"model": "tiny", "stream": streamed, **limit, **body})
    assert answer.status_code == 200, answer.text
    assert "refus" in answer.text
    assert server.service.engine.statistics.prompt == asked


def test_what_is_safe_is_answered(server: Running) -> None:
    for path, body in ((RESPONSES, {"input": "hi"}), (MESSAGES, {"messages": [ASK]})):
        limit = {"max_tokens": 5} if path == MESSAGES else {"max_output_tokens": 5}
        assert "refus" not in server.post(path, model="tiny", **limit, **body).text
