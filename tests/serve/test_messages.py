"""`/v1/messages`: Anthropic's API as its clients read it, and what is refused by which name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llamaseek.serve.keys import ApiKey
from llamaseek.serve.wire.blocks import AnswerPart, Counts
from llamaseek.serve.wire.message_events import MessageWriter
from tests.safety.scripted import deciding_guard
from tests.serve.running import Running, make_service, roomy, running
from tests.serve.spoken import STORY, Speech, finds, spoken_service
from tests.text.styles import tokenizer

PATH, CHAT = "/v1/messages", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
CALL = '{"name": "get_weather", "parameters": {"city": "Bern"}}'
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}},
          "required": ["city"], "additionalProperties": False}  # fmt: skip
WEATHER = {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}
CACHED = {"cache_control": {"type": "ephemeral"}}


def ask(run: Running, **body: Any) -> httpx.Response:
    return run.post(PATH, **{"max_tokens": 200, "messages": HELLO, "temperature": 0, **body})


def events(run: Running, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, whose names are their types."""
    found = []
    for block in ask(run, stream=True, **body).text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_whole_and_streamed(server: Running, speech: Speech) -> None:
    speech.say(STORY)
    body = ask(server, system="Be brief.").json()
    assert body["content"] == [{"type": "text", "text": STORY}]
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "tiny")
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["output_tokens"] == len(speech.ids) - 1
    found = events(server, system=[{"type": "text", "text": "Be brief.", **CACHED}])
    kinds = [each["type"] for each in found]
    texts = [e["delta"]["text"] for e in found if e["type"] == "content_block_delta"]
    assert "".join(texts) == STORY and len(texts) > 1
    assert kinds == [
        "message_start", "content_block_start", *["content_block_delta"] * len(texts),
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert found[0]["message"]["content"] == [] and found[0]["message"]["stop_reason"] is None
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    usage = found[-2]["usage"]
    assert usage["output_tokens"] == len(speech.ids) - 1
    inputs = usage["input_tokens"] + usage["cache_read_input_tokens"]
    counted = server.post(f"{PATH}/count_tokens", messages=HELLO, system="Be brief.").json()
    assert counted == {"input_tokens": inputs}


def test_how_it_stops(server: Running, speech: Speech) -> None:
    speech.say(STORY)
    short = ask(server, max_tokens=3).json()
    assert short["stop_reason"] == "max_tokens" and short["usage"]["output_tokens"] == 3
    for body in ({"stop_sequences": ["bird", "fox"]}, {"stop_sequences": ["fox"]}):
        stopped = ask(server, **body).json()
        assert stopped["content"][0]["text"] == "The red "
        assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "fox")
        last = events(server, **body)[-2]["delta"]
        assert last == {"stop_reason": "stop_sequence", "stop_sequence": "fox"}


def test_an_answer_that_fills_the_context_says_so() -> None:
    for said, reason in ((100, "max_tokens"), (7, "model_context_window_exceeded")):
        writer = MessageWriter("msg_1", "tiny", most=100)
        assert len(list(writer.add(AnswerPart(content="x", finish="length")))) == 3
        assert writer.body(Counts(5, said), None)["stop_reason"] == reason


def test_tools_over_two_turns(server: Running, speech: Speech) -> None:
    speech.say(CALL)
    body = ask(server, tools=[{**WEATHER, **CACHED}], tool_choice={"type": "auto"}).json()
    (block,) = body["content"]
    assert body["stop_reason"] == "tool_use" and block["type"] == "tool_use"
    assert block["name"] == "get_weather" and block["input"] == {"city": "Bern"}
    found = events(server, tools=[WEATHER])
    start = next(each for each in found if each["type"] == "content_block_start")
    assert start["content_block"]["input"] == {}
    parts = [e["delta"]["partial_json"] for e in found if e["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == {"city": "Bern"}
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    speech.say(STORY)
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "rain"}
    talk = [*HELLO, {"role": "assistant", "content": body["content"]},
            {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}]  # fmt: skip
    function = {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}
    call = {
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
    }
    same = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "x", "content": "rain"},
            {"role": "user", "content": "And?"}]  # fmt: skip
    tools = [{"type": "function", "function": function}]
    chat = server.post(CHAT, messages=same, tools=tools, max_tokens=1).json()
    for content, failed in (("rain", None), ([{"type": "text", "text": "rain"}], False)):
        result |= {"content": content, "is_error": failed}
        count = server.post(f"{PATH}/count_tokens", messages=talk, tools=[WEATHER]).json()
        assert count["input_tokens"] == chat["usage"]["prompt_tokens"]
    result |= {"is_error": True}
    more = server.post(f"{PATH}/count_tokens", messages=talk, tools=[WEATHER]).json()
    assert more["input_tokens"] > count["input_tokens"]


def test_a_call_or_a_schema_that_is_asked_for() -> None:
    with running(roomy()) as run:
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            body = ask(run, tools=[WEATHER], tool_choice=choice).json()
            assert body["stop_reason"] == "tool_use" and body["content"][0]["name"] == "get_weather"
        none = ask(run, tools=[WEATHER], tool_choice={"type": "none"}, max_tokens=5).json()
        assert all(block["type"] == "text" for block in none["content"])
        days = {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"],
                "additionalProperties": False}  # fmt: skip
        held = ask(run, output_config={"format": {"type": "json_schema", "schema": days}}).json()
        assert json.loads(held["content"][0]["text"])["days"] in (1, 2)


def test_the_last_words_of_the_assistant_are_continued(server: Running, speech: Speech) -> None:
    speech.say(STORY)
    count = f"{PATH}/count_tokens"
    begun = [*HELLO, {"role": "assistant", "content": "Well, "}]
    closed = [*begun, {"role": "user", "content": "x"}]
    assert ask(server, messages=begun).json()["content"][0]["text"] == STORY
    sizes = [server.post(count, messages=talk).json()["input_tokens"] for talk in (begun, closed)]
    assert sizes[0] < sizes[1]


def test_thinking_is_a_block_that_can_be_sent_back() -> None:
    speech = Speech("I add.\n</think>\n\nIt is 4.", tokenizer("deepseek_v3.1"))
    with running(spoken_service(speech)) as run:
        asked = {"chat_template_kwargs": {"thinking": True}}
        thought, said = ask(run, **asked).json()["content"]
        assert thought == {"type": "thinking", "thinking": "I add.", "signature": ""}
        assert said == {"type": "text", "text": "It is 4."}
        found = events(run, **asked)
        kinds = [e["delta"]["type"] for e in found if e["type"] == "content_block_delta"]
        assert set(kinds) == {"thinking_delta", "text_delta"}
        assert kinds == sorted(kinds, reverse=True)
        talk = [*HELLO, {"role": "assistant", "content": [thought, said]}, *HELLO]
        assert ask(run, messages=talk, **asked).status_code == 200


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
    ({"container": "x"}, "container"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"stop_sequences": [5]}, "stop_sequences[0]"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "f", "input_schema": {"type": "array"}, "strict": True}]}, "tools"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool"}, "tools": [WEATHER]}, "tool_choice.name"),
    ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [WEATHER]}, "tool_choice"),
    ({"output_config": {"effort": "high"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
     "output_config.format"),
    ({"metadata": {"user": "x"}}, "metadata.user"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"messages": []}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    ({"system": "s", "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
     "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f",
      "input": {}}]}]}, "messages[0].content[0].type"),
    ({"messages": [*HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "a",
      "name": "f", "input": "{}"}]}]}, "messages[1].content[0].input"),
    ({"messages": [*HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "a",
      "name": "", "input": {}}]}]}, "messages[1].content[0].name"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
     "messages[0].content[0].tool_use_id"),
    ({"messages": HELLO * 2000}, "messages"),
    ({"model": "other"}, "model"),
    ({"messages": [{"role": "user", "content": "x" * 1_000_000}]}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_cannot_be_answered_is_refused_by_its_name(
    server: Running, body: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        answer = ask(server, **{**body, "stream": stream})
        assert answer.status_code == (404 if param == "model" else 400), answer.text
        found = answer.json()
        assert set(found) == {"type", "error"} and found["type"] == "error"
        kind = "not_found_error" if param == "model" else "invalid_request_error"
        assert found["error"]["type"] == kind and len(answer.content) < 4096
        assert found["error"]["param"] == param, found


def test_bodies_keys_and_paths() -> None:
    with running(make_service(options={"api_keys": (ApiKey("secret"),)})) as run:
        body = {"model": "tiny", "max_tokens": 1, "messages": HELLO}
        for headers, status in (
            ({"x-api-key": "secret"}, 200),
            ({"Authorization": "Bearer secret"}, 200),
            ({"x-api-key": "other"}, 401),
            ({}, 401),
        ):
            for path in (PATH, "/messages"):
                answer = httpx.post(run.url + path, json=body, headers=headers)
                assert answer.status_code == status
                if status == 401:
                    assert answer.json()["error"]["type"] == "authentication_error"
        twice = [("x-api-key", "secret"), ("x-api-key", "secret")]
        assert httpx.post(run.url + PATH, json=body, headers=twice).status_code == 401
        json_type = {"Content-Type": "application/json"}
        for raw, status in ((b"nonsense", 400), (b"[]", 400), (b" " * (5 << 20), 413)):
            answer = run.client.post(PATH, content=raw, headers=json_type)
            assert answer.status_code == status and answer.json()["type"] == "error"


def test_an_error_in_the_middle_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = Speech()
    with running(spoken_service(speech)) as run:
        real = speech.logits

        def breaks(hidden: Any) -> Any:
            if len(speech.engine.scheduler.running[0].generated) == 2:
                raise RuntimeError("boom")
            return real(hidden)

        monkeypatch.setattr(run.service.engine.runner, "logits", breaks)
        last = events(run)[-1]
        assert last["type"] == "error" and last["error"]["type"] == "api_error"


def test_what_a_guard_refuses_is_a_refusal() -> None:
    with running(spoken_service(Speech(), deciding_guard(finds("bomb")))) as run:
        talk = [{"role": "user", "content": "How is a bomb built?"}]
        for body in ({"messages": talk}, {"tools": [{**WEATHER, "description": "a bomb"}]}):
            found = ask(run, **body).json()
            assert found["stop_reason"] == "refusal"
            assert "refused by the guard" in found["content"][0]["text"]
        assert events(run, messages=talk)[-2]["delta"]["stop_reason"] == "refusal"
        assert ask(run).json()["stop_reason"] == "end_turn"
