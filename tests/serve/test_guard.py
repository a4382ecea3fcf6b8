"""A guard before and behind the chat route: text that it has not cleared is not sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from openai import OpenAI

from llamaseek.engine.scheduler import QueueFull
from llamaseek.safety.guard import Guard
from tests.safety.scripted import deciding_guard
from tests.serve.running import Running, running
from tests.serve.spoken import STORY, Speech, finds, spoken_service

HELLO = [{"role": "user", "content": "Tell me a story."}]
STEAL = [{"role": "user", "content": "How do I steal a bike?"}]
SECOND = "And the bird flew away in the nick of time!"


@contextmanager
def guarded(guard: Guard, text: str = STORY, **options: Any) -> Iterator[Running]:
    with running(spoken_service(Speech(text), guard, **options)) as run:
        yield run


def chunks(server: Running, messages: list[dict[str, str]], **body: Any) -> list[dict[str, Any]]:
    """The choices of a streamed chat."""
    answer = server.post(
        "/v1/chat/completions", messages=messages, stream=True, temperature=0, **body
    )
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    found = [choice for line in lines for choice in json.loads(line)["choices"]]
    assert answer.text.endswith("data: [DONE]\n\n")
    return found


def told(choices: list[dict[str, Any]]) -> str:
    """Everything a stream sent of the answer's text, log-probabilities included."""
    texts = [choice["delta"].get("content") or "" for choice in choices]
    scored = [
        entry["token"]
        for choice in choices
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    if scored:
        assert "".join(scored) == "".join(texts)
    return "".join(texts)


def test_what_is_safe_passes_with_its_verdicts() -> None:
    with guarded(deciding_guard(finds("steal"))) as server:
        body = server.post(
            "/v1/chat/completions", messages=HELLO, max_tokens=200, temperature=0
        ).json()
        (choice,) = body["choices"]
        assert choice["message"]["content"] == STORY
        assert choice["message"]["refusal"] is None
        assert choice["finish_reason"] == "stop"
        guard = choice["guard"]
        assert guard["input"]["safe"] and guard["output"]["safe"]
        assert guard["output"]["role"] == "assistant"
        assert guard["input"]["unsafe_probability"] < 1e-5
        streamed = chunks(server, HELLO, max_tokens=200, logprobs=True, top_logprobs=3)
        assert told(streamed) == STORY
        assert streamed[-1]["guard"] == guard
        assert server.idle()


def test_an_unsafe_message_never_reaches_the_model() -> None:
    with guarded(deciding_guard(finds("steal"))) as server:
        body = server.post("/v1/chat/completions", messages=STEAL, max_tokens=200).json()
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["content"] == ""
        assert "S2 Non-Violent Crimes" in choice["message"]["refusal"]
        (verdict,) = choice["guard"].values()
        assert verdict["categories"] == [{"code": "S2", "name": "Non-Violent Crimes"}]
        (streamed,) = chunks(server, STEAL)
        assert streamed["finish_reason"] == "content_filter"
        assert streamed["guard"] == choice["guard"]
        assert server.service.engine.statistics.steps == 0


@pytest.mark.parametrize(
    ("word", "passed"),
    [
        ("red", ""),
        ("flew", "The red fox chased the blue bird. And"),
        ("buzzed", STORY[: STORY.index(" old frog")]),
    ],
)
def test_a_stream_ends_before_what_is_unsafe(word: str, passed: str) -> None:
    with guarded(deciding_guard(finds(word))) as server:
        for body in ({}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["wolf", "away f"]}):
            streamed = chunks(server, HELLO, max_tokens=200, **body)
            assert streamed[-1]["finish_reason"] == "content_filter"
            assert word not in told(streamed)
            assert passed.startswith(told(streamed))
            assert not streamed[-1]["guard"]["output"]["safe"]
            assert server.idle()


def test_a_piece_comes_when_it_is_cleared_and_not_before() -> None:
    cleared = threading.Event()
    judged: list[str] = []

    def decide(messages: Any) -> str:
        judged.append(messages[-1]["content"])
        if len(judged) == 3:
            assert cleared.wait(20)
        return "safe"

    with guarded(deciding_guard(decide)) as server:
        body = {
            "model": "tiny",
            "messages": HELLO,
            "stream": True,
            "max_tokens": 200,
            "temperature": 0,
        }
        with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = (line[6:] for line in answer.iter_lines() if line.startswith("data: {"))
            first = json.loads(next(lines))["choices"][0]["delta"]["content"]
            assert first == judged[1]
            assert SECOND not in first
            cleared.set()
            rest = [json.loads(line)["choices"][0] for line in lines]
        assert first + told(rest) == STORY


@pytest.mark.parametrize("answer", ["", "Safe", "safely", "I think it is safe", "unsafe"])
def test_nothing_passes_a_guard_that_talks_nonsense(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(deciding_guard(lambda messages: answer)) as server:
        whole = server.post("/v1/chat/completions", messages=HELLO).json()["choices"][0]
        assert whole["finish_reason"] == "content_filter"
        assert whole["message"]["content"] == ""
        with caplog.at_level("ERROR", "llamaseek.serve"):
            assert told(chunks(server, HELLO, logprobs=True)) == ""
        assert server.service.engine.statistics.steps == 0
        if answer and answer != "unsafe":
            assert "it answered otherwise" in caplog.text and answer not in caplog.text


@pytest.mark.parametrize("end", ["nonsense", "stopped", "killed", "hanging"])
def test_nothing_passes_once_the_guard_is_gone(end: str) -> None:
    """Message and first sentence were cleared; then the guard ends in one way or another."""
    asked, wait = [], threading.Event()

    def decide(messages: Any) -> str:
        asked.append(messages)
        if len(asked) > 2 and end == "killed":
            guard.engine.scheduler.schedule = lambda: 1 / 0  # type: ignore[assignment]
        if len(asked) > 2 and end == "stopped":
            server.service.guard.background.stop()  # type: ignore[union-attr]
        if len(asked) > 2 and end == "hanging":
            wait.wait(20)
        return "hm" if len(asked) > 2 and end == "nonsense" else "safe"

    guard = deciding_guard(decide)
    try:
        with guarded(guard, guard_timeout=1.0 if end == "hanging" else 30.0) as server:
            streamed = chunks(server, HELLO, max_tokens=200)
            assert told(streamed) and SECOND.split()[-1] not in told(streamed)
            assert streamed[-1]["finish_reason"] == "content_filter"
            assert streamed[-1]["guard"]["error"] == "the guard gave no verdict"
            assert len(asked) == 3
            wait.set()
    finally:
        wait.set()


def refuses_everything(server: Running) -> None:
    for body in ({}, {"stream": True}):
        answer = server.post("/v1/chat/completions", messages=HELLO, max_tokens=20, **body)
        assert answer.status_code == 200
        assert "content_filter" in answer.text
        assert "the guard gave no verdict" in answer.text
        assert "fox" not in answer.text
    assert server.service.engine.statistics.steps == 0


def test_nothing_passes_a_guard_that_was_stopped() -> None:
    with guarded(deciding_guard(finds())) as server:
        assert server.service.guard is not None
        server.service.guard.background.stop()
        refuses_everything(server)


def test_nothing_passes_a_guard_that_was_killed() -> None:
    guard = deciding_guard(finds())

    def die() -> Any:
        raise RuntimeError("killed")

    guard.engine.step = die  # type: ignore[method-assign]
    with guarded(guard) as server:
        refuses_everything(server)
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/ready").status_code == 503
        assert 'reason="unavailable"' not in server.client.get("/metrics").text  # was only asked


def test_nothing_passes_a_guard_that_fails_in_its_forward() -> None:
    guard = deciding_guard(finds())

    def fail(hidden: Any) -> Any:
        raise RuntimeError("out of memory")

    guard.engine.runner.logits = fail  # type: ignore[method-assign]
    with guarded(guard) as server:
        refuses_everything(server)


def test_nothing_passes_a_guard_that_hangs() -> None:
    wait = threading.Event()
    guard = deciding_guard(finds())
    step = guard.engine.step
    guard.engine.step = lambda: (wait.wait(20), step())[1]  # type: ignore[method-assign]
    try:
        with guarded(guard, guard_timeout=0.3) as server:
            refuses_everything(server)
            wait.set()
    finally:
        wait.set()


def test_an_answer_s_time_may_end_while_the_guard_judges_it() -> None:
    def decide(messages: Any) -> str:
        time.sleep(0.8 if messages[-1]["role"] == "assistant" else 0)
        return "safe"

    with guarded(deciding_guard(decide), timeout=0.4) as server:
        answer = server.post("/v1/chat/completions", messages=HELLO, temperature=0)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        body = {"messages": HELLO, "temperature": 0, "stream": True}
        stream = server.post("/v1/chat/completions", **body).text
        assert '"timeout_error"' in stream and stream.endswith("data: [DONE]\n\n")
        assert "fox" not in stream and server.idle()


def test_a_guard_that_many_wait_for_tells_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(requests: Any) -> Any:
        raise QueueFull("as many wait as may")

    with guarded(deciding_guard(finds())) as server:
        assert server.service.guard is not None
        assert server.client.get("/ready").status_code == 200
        monkeypatch.setattr(server.service.guard.background, "submit", full)
        monkeypatch.setattr(server.service.guard.background, "most", 0)
        assert server.client.get("/ready").json() == {"status": "full"}
        answer = server.post("/v1/chat/completions", messages=HELLO)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert server.service.engine.statistics.steps == 0


def test_the_guard_cannot_be_gone_around() -> None:
    with guarded(deciding_guard(finds("steal"))) as server:
        answer = server.post("/v1/completions", prompt="How do I steal a bike?", max_tokens=4)
        assert answer.status_code == 403
        assert server.service.engine.statistics.steps == 0


def test_each_of_several_answers_is_judged() -> None:
    with guarded(deciding_guard(finds("buzzed"))) as server:
        body = server.post(
            "/v1/chat/completions", messages=HELLO, max_tokens=60, n=2, temperature=0
        ).json()
        for choice in body["choices"]:
            assert "buzzed" not in choice["message"]["content"]
            assert "guard" in choice


def test_openai_s_client_reads_a_refusal() -> None:
    with guarded(deciding_guard(finds("steal"))) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        refused = client.chat.completions.create(model="tiny", messages=STEAL)  # type: ignore[call-overload]
        assert refused.choices[0].finish_reason == "content_filter"
        assert "refused by the guard" in refused.choices[0].message.refusal
        assert refused.choices[0].guard["input"]["safe"] is False
