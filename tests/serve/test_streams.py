"""Streams, token by token and byte by byte: characters whole, stops unseen, calls as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaseek.text.parse import parse_ids
from tests.serve.running import TOKENIZER, Running
from tests.serve.spoken import STORY, Speech
from tests.serve.test_calls import RIGHT, byte_id, tool

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "A 🦊 met a 👩‍👧 in the café: ¡hola! 🇨🇭"
GIVEN: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "The red fox"},
    CHAT: {"messages": [{"role": "user", "content": "Tell me of the fox"}]},
}


def in_bytes(text: str) -> list[int]:
    """A text as tokens of one byte each."""
    return [byte_id(TOKENIZER, byte) for byte in text.encode()]


def spell(speech: Speech, text: str, bytewise: bool) -> None:
    """Have a text said, in tokens as they are or of one byte."""
    speech.say(text)
    if bytewise:
        speech.ids = [*in_bytes(text), speech.ids[-1]]


def pieces(server: Running, path: str, **body: Any) -> list[dict[str, Any]]:
    """The choices of a stream."""
    answer = server.post(path, **GIVEN[path], temperature=0, stream=True, **body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, end, blank = answer.text.split("\n\n")
    assert end == "data: [DONE]" and not blank
    found = [json.loads(line.removeprefix("data: "))["choices"] for line in lines]
    return [choice for each in found for choice in each]


def texts(path: str, choices: list[dict[str, Any]]) -> list[str]:
    """What each choice adds."""
    if path == COMPLETIONS:
        return [choice["text"] for choice in choices]
    return [choice["delta"].get("content") or "" for choice in choices]


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_characters_come_whole(server: Running, speech: Speech, path: str, bytewise: bool) -> None:
    spell(speech, TEXT, bytewise)
    said = texts(path, pieces(server, path, max_tokens=100))
    assert "".join(said) == TEXT and "\ufffd" not in "".join(said)
    assert len([each for each in said if each]) > 10
    body = {**GIVEN[path], "temperature": 0, "max_tokens": 100}
    (choice,) = server.post(path, **body).json()["choices"]
    assert (choice["text"] if path == COMPLETIONS else choice["message"]["content"]) == TEXT


STOPS = ["🦊", "\u200d👧", "fé: ¡h", ["zebra", "¡hola", "met a"]]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_stop_is_never_seen_whatever_it_spans(server: Running, speech: Speech, path: str) -> None:
    spell(speech, TEXT, bytewise=True)
    for stop in STOPS:
        wanted = [TEXT.find(each) for each in ([stop] if isinstance(stop, str) else stop)]
        first = min(place for place in wanted if place >= 0)
        choices = pieces(server, path, stop=stop, max_tokens=100)
        assert "".join(texts(path, choices)) == TEXT[:first], stop
        assert choices[-1]["finish_reason"] == "stop"
    held = pieces(server, path, stop="🇨🇭!", max_tokens=100)  # begun at the end, never whole
    assert "".join(texts(path, held)) == TEXT
    body = {**GIVEN[path], "temperature": 0, "max_tokens": 100, "stop": "fé: ¡h"}
    (choice,) = server.post(path, **body).json()["choices"]
    said = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
    assert said == "A 🦊 met a 👩‍👧 in the ca" and choice["finish_reason"] == "stop"


def test_a_stop_that_the_prompt_ends_with_stops_nothing(server: Running, speech: Speech) -> None:
    speech.say(" ran.")
    for prompt in ("The red fox", "The red"):
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 20, "stop": ["fox", "red"]}
        (choice,) = server.post(COMPLETIONS, **body).json()["choices"]
        assert choice["text"] == " ran." and choice["finish_reason"] == "stop"
    echoed = server.post(COMPLETIONS, **body, echo=True).json()["choices"][0]["text"]
    assert echoed == "The red ran."


CALLS = [
    RIGHT,
    '{"name": "note", "parameters": {"é🦊": ["}", "\\"{", null]}}',
    '[get_weather(city="Rome", days=2), note()]',
    '<function=note>{"text": "日本"}</function>',
    "{ this is no call",
    "Sure. " + RIGHT,
]


@pytest.mark.parametrize("said", CALLS)
def test_calls_are_the_same_in_a_stream_of_any_cut(
    server: Running, speech: Speech, said: str
) -> None:
    spell(speech, said, bytewise=True)
    wanted = parse_ids(TOKENIZER, TOKENIZER.encode(said))
    tools = [tool(name, {"type": "object"}, None) for name in ("get_weather", "note")]
    choices = pieces(server, CHAT, tools=tools, max_tokens=300)
    assert "".join(texts(CHAT, choices)) == wanted["content"]
    found = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [call["index"] for call in found] == list(range(len(found)))
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found
    ]
    expected = [each["function"] for each in wanted.get("tool_calls", [])]
    assert calls == [(each["name"], each["arguments"]) for each in expected]
    assert choices[-1]["finish_reason"] == ("tool_calls" if found else "stop")


def test_usage_counts_what_was_given_and_said(server: Running, speech: Speech) -> None:
    speech.say(STORY)
    for path in (COMPLETIONS, CHAT):
        body = {**GIVEN[path], "temperature": 0, "max_tokens": 200}
        usage = server.post(path, **body).json()["usage"]
        assert usage["completion_tokens"] == len(TOKENIZER.encode(STORY))
        asked = {"prompt": "The red fox"} if path == COMPLETIONS else GIVEN[CHAT]
        given = server.post("/tokenize", **asked).json()["count"]
        assert usage["prompt_tokens"] == given
        assert usage["total_tokens"] == given + usage["completion_tokens"]


def test_timings_are_the_moments_of_the_engine(server: Running, speech: Speech) -> None:
    """By llama.cpp's names; a token every 20 ms is fewer than 50 a second."""
    speech.say(STORY)
    speech.pause = 0.02
    for path in (COMPLETIONS, CHAT):
        body = {**GIVEN[path], "temperature": 0, "max_tokens": 12}
        found = server.post(path, **body).json()
        ends = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = server.post(path, **body, **ends).text
        last = json.loads(streamed.split("data: ")[-2])
        for answer in (found, last):
            timings, usage = answer["timings"], answer["usage"]
            assert timings["prompt_n"] == usage["prompt_tokens"] and timings["prompt_ms"] > 0
            assert timings["predicted_n"] == usage["completion_tokens"] == 12
            assert timings["predicted_ms"] >= 11 * 20
            rate = 11 / (timings["predicted_ms"] / 1000)
            assert timings["predicted_per_second"] == pytest.approx(rate, rel=0.01) and rate <= 50
        one = server.post(path, **{**body, "max_tokens": 1}).json()["timings"]
        assert (one["predicted_ms"], one["predicted_per_second"]) == (0, None)
    speech.pause = 0.0


def test_a_call_that_the_length_cuts_off_after_says_so(server: Running, speech: Speech) -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    body = {"tools": [{"type": "function", "function": function}]}
    speech.say('{"name": "f", "parameters": {}}')
    whole = len(speech.ids) - 1  # without the end
    for most, finish in ((whole + 1, "tool_calls"), (whole, "length")):
        found = pieces(server, CHAT, max_tokens=most, **body)
        assert found[-1]["finish_reason"] == finish
        assert [
            call["function"]["name"]
            for each in found
            for call in each["delta"].get("tool_calls", [])
        ] == ["f"]


def test_a_call_with_a_number_that_no_client_could_read_is_text(
    server: Running, speech: Speech
) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    function = {"name": "f", "parameters": schema, "strict": True}
    body = {"tools": [{"type": "function", "function": function}], "max_tokens": 900}
    for number in ("1e999", "-1e999", f"{'9' * 400}.5"):
        said = f'{{"name": "f", "parameters": {{"x": {number}}}}}'
        speech.say(said)
        for choice in ("auto", "required"):
            found = pieces(server, CHAT, tool_choice=choice, **body)
            assert "".join(texts(CHAT, found)) == said
            assert not any("tool_calls" in each["delta"] for each in found)
            assert found[-1]["finish_reason"] == "stop"
