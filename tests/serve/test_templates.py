"""Chats by a folder's own template over the API: reasoning, values for the template, open ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.running import Running, make_service, running
from tests.serve.spoken import Speech, spoken_service
from tests.text.styles import made, say, tokenizer

CHAT = "/v1/chat/completions"
ASKED = [say("user", "2+2?")]
V31 = tokenizer("deepseek_v3.1")
SPEECH = Speech("I add.\n</think>\n\nIt is 4.", V31)
THINKING = {"chat_template_kwargs": {"thinking": True}}


@pytest.fixture(scope="module")
def run() -> Iterator[Running]:
    with running(spoken_service(SPEECH)) as started:
        yield started


def answer(run: Running, **body: Any) -> dict[str, Any]:
    """The first choice of an answer."""
    asked = {"messages": ASKED, "temperature": 0, "max_tokens": 64, **body}
    response = run.post(CHAT, **asked)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def streamed(run: Running, **body: Any) -> dict[str, str]:
    """The parts of a streamed answer, joined by their names."""
    asked = {"messages": ASKED, "temperature": 0, "max_tokens": 64, "stream": True, **body}
    found: dict[str, str] = {}
    for line in run.post(CHAT, **asked).text.splitlines():
        if line.startswith("data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            for name in ("reasoning_content", "content"):
                found[name] = found.get(name, "") + (delta.get(name) or "")
    return found


def prompt(run: Running, **body: Any) -> str:
    """What a chat is to the model, as text."""
    ids = run.post("/tokenize", **body).json()["tokens"]
    return run.service.tokenizer.decode(ids, skip_special=False)


def test_reasoning_comes_out_apart(run: Running) -> None:
    expected = {"reasoning_content": "I add.", "content": "It is 4."}
    found = answer(run, **THINKING)
    assert found["message"].items() >= expected.items() and found["finish_reason"] == "stop"
    assert streamed(run, **THINKING) == expected


def test_without_thinking_the_same_words_are_content(run: Running) -> None:
    """The template closes the reasoning itself, so what the model says is its answer."""
    found = answer(run)["message"]
    assert "reasoning_content" not in found
    assert found["content"] == "I add.\n</think>\n\nIt is 4." == streamed(run)["content"]


@pytest.mark.parametrize("stop", ["add", "is"])
def test_a_stop_text_ends_either_part(run: Running, stop: str) -> None:
    found = answer(run, stop=stop, **THINKING)["message"]
    reasoning, content = ("I ", "") if stop == "add" else ("I add.", "It ")
    assert (found["reasoning_content"], found["content"]) == (reasoning, content)
    whole = streamed(run, stop=stop, **THINKING)
    assert (whole["reasoning_content"], whole["content"]) == (reasoning, content)


def test_reasoning_goes_in_and_the_template_drops_it(run: Running) -> None:
    given = {"role": "assistant", "content": "4", "reasoning_content": "I add."}
    talk = [*ASKED, given, say("user", "And 3+3?")]
    assert answer(run, messages=talk)["message"]["content"]
    assert "I add." not in prompt(run, messages=talk) and "4<" in prompt(run, messages=talk)


def test_values_for_the_template(run: Running) -> None:
    assert prompt(run, messages=ASKED, **THINKING).endswith("<think>")
    refused = run.post(CHAT, messages=ASKED, chat_template_kwargs={"thnking": True})
    assert refused.status_code == 400 and "chat_template_kwargs.thnking" in refused.text


def test_the_servers_own_values_hold_where_a_request_says_nothing() -> None:
    ours = made("deepseek_v3.1", V31.chat_templates).use_chat_template(kwargs={"thinking": True})
    with running(make_service(tokenizer=ours)) as run:
        assert prompt(run, messages=ASKED).endswith("<think>")
        off = {"chat_template_kwargs": {"thinking": False}}
        assert prompt(run, messages=ASKED, **off).endswith("<think></think>")


def test_an_open_last_answer_is_continued(run: Running) -> None:
    talk = [*ASKED, say("assistant", "It is")]
    opened = "<｜Assistant｜><think></think>It is"
    asked = {"messages": talk, "add_generation_prompt": False, "continue_final_message": True}
    assert prompt(run, **asked).endswith(opened)
    size = len(run.post("/tokenize", **asked).json()["tokens"])
    closed = len(run.post("/tokenize", messages=talk).json()["tokens"])
    again = {"add_generation_prompt": True}
    for body, expected in (
        ({}, size),
        ({"continue_final_message": True}, size),
        ({"continue_final_message": False}, closed),
        (again, closed),
    ):
        response = run.post(CHAT, messages=talk, max_tokens=1, **body)
        assert response.json()["usage"]["prompt_tokens"] == expected, body
    both = run.post(CHAT, messages=talk, continue_final_message=True, **again)
    assert both.status_code == 400 and "cannot be asked for with" in both.text
    none = run.post(CHAT, messages=ASKED, continue_final_message=True)
    assert none.status_code == 400 and "needs a conversation that ends with" in none.text


def test_contents_in_parts(run: Running) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}]
    assert prompt(run, messages=parts) == prompt(run, messages=ASKED)


def test_a_folder_without_a_template_completes_and_says_why_it_does_not_chat() -> None:
    with running(make_service(tokenizer=made("smollm2", None))) as run:
        done = run.post("/v1/completions", prompt="Hi", max_tokens=1, temperature=0)
        assert done.status_code == 200 and done.json()["usage"]["prompt_tokens"] == 2  # no bos
        refused = run.post(CHAT, messages=ASKED)
        assert refused.status_code == 400 and "has no chat template" in refused.text
