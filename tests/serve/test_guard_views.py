"""Ways round the guard: wherever a request can put a text that reaches the model, it is judged.

The guard here finds a turn unsafe that has the mark in it, and reads the last turn alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llamaseek.safety.views import input_views
from llamaseek.text.guard_prompt import guard_prompt
from llamaseek.text.messages import Message
from tests.safety.scripted import deciding_guard
from tests.serve.running import Running, running
from tests.serve.spoken import STORY, Speech, spoken_service

MARK = "🦊"
ASK: list[Message] = [{"role": "user", "content": "Tell me a story."}]
TALK: list[Message] = [*ASK, {"role": "assistant", "content": "Which?"}, *ASK]


def call(**more: Any) -> dict[str, Any]:
    made = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {**made, **more}


def called(result: Any = "fine", **more: Any) -> list[Message]:
    """A call and its result."""
    made = {"role": "assistant", "content": None, "tool_calls": [call(**more)]}
    return [*ASK, made, {"role": "tool", "tool_call_id": "call_1", "content": result}]


def tool(description: str = "", **parameters: Any) -> dict[str, Any]:
    function = {"name": "f", "description": description, "parameters": parameters}
    return {"tools": [{"type": "function", "function": function}], "messages": ASK}


def schema(schema: Any, **more: Any) -> dict[str, Any]:
    given = {"name": "x", "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": given}, "messages": ASK}


def property_(**keys: Any) -> dict[str, Any]:
    return tool(type="object", properties={"a": {"type": "string", **keys}})


USER = {
    "a text": {"messages": [{"role": "user", "content": MARK}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": part}
                                                        for part in ("a", MARK)]}]},
    "two messages": {"messages": [{"role": "user", "content": MARK}, *ASK]},
    "after an answer": {"messages": [*TALK, {"role": "user", "content": MARK}]},
    "a tool's description": tool(MARK),
    "a title": tool(title=MARK),
    "a property": tool(type="object", properties={MARK: {}}),
    "required": tool(type="object", required=[MARK]),
    "a property's description": property_(description=MARK),
    "an enum": property_(enum=["a", MARK]),
    "a constant": property_(const=MARK),
    "a default": property_(default=MARK),
    "examples": property_(examples=[MARK]),
    "a comment": property_(**{"$comment": MARK}),
    "a pattern": property_(pattern=MARK),
    "a key of one's own": property_(**{f"x-{MARK}": 1}),
    "definitions": tool(**{"$defs": {"a": {"description": MARK}}}),
    "deep": tool(a=[{"b": {"c": [[MARK]]}}]),
    "the second tool": {"messages": ASK, "tools": [
        {"type": "function", "function": {"name": name, "description": text}}
        for name, text in (("f", ""), ("g", MARK))
    ]},
    "a tool that may not be called": {**tool(MARK), "tool_choice": "none"},
    "a tool that must be called": {**tool(MARK), "tool_choice": "required"},
    "a strict tool": {"messages": ASK, "tools": [{"type": "function", "function": {
        "name": "f", "strict": True, "parameters": {"properties": {"a": {"enum": [MARK]}}}}}]},
    "the format's name": {**schema({"type": "null"}), "response_format": {
        "type": "json_schema", "json_schema": {"name": MARK, "schema": {"type": "null"}}}},
    "the format's description": schema({"type": "null"}, description=MARK),
    "the format's enum": schema({"enum": ["a", MARK]}),
    "the format's constant": schema({"const": MARK}),
    "the format's property": schema({"type": "object", "properties": {MARK: {"type": "null"}}}),
    "the format's title": schema({"type": "null", "title": MARK}),
    "the format's pattern": schema({"type": "string", "pattern": MARK}),
    "a regular expression": {"messages": ASK, "response_format": {"type": "regex", "regex": MARK}},
    "a grammar": {"messages": ASK, "response_format": {"type": "lark", "lark": f'start: "{MARK}"'}},
    "a grammar's comment": {"messages": ASK, "response_format": {
        "type": "lark", "lark": f'start: "a" // {MARK}'}},
    "a template's variable": {"messages": ASK, "chat_template_kwargs": {"date_string": MARK}},
    "a call's id": {"messages": called(id=f"{MARK} and more")},
    "a result's id": {"messages": [*called()[:2], {**called()[2], "tool_call_id": MARK}]},
    "a tool's name": {"messages": [*called()[:2], {**called()[2], "name": MARK}]},
    "a refusal": {"messages": [*ASK, {"role": "assistant", "content": "a", "refusal": MARK}, *ASK]},
}  # fmt: skip
ASSISTANT = {
    "the answer's beginning": {"messages": [*ASK, {"role": "assistant", "content": MARK}]},
    "its parts": {"messages": [*ASK, {"role": "assistant",
                                      "content": [{"type": "text", "text": MARK}]}]},
    "its reasoning": {"messages": [*ASK, {"role": "assistant", "content": "",
                                          "reasoning_content": MARK}]},
    "thinking": {"messages": [*ASK, {"role": "assistant", "content": "a", "thinking": MARK}]},
    "reasoning": {"messages": [*ASK, {"role": "assistant", "content": "a", "reasoning": MARK}]},
    "a call's arguments": {"messages": called(function={
        "name": "f", "arguments": json.dumps({"a": MARK})})},
    "a call's arguments as an object": {"messages": called(function={
        "name": "f", "arguments": {MARK: 1}})},
    "a called name": {"messages": called(function={"name": MARK, "arguments": "{}"})},
    "a result": {"messages": called(MARK)},
    "a result's parts": {"messages": called([{"type": "text", "text": MARK}])},
    "a result as an object": {"messages": called({"a": [MARK]})},
    "a result before another": {"messages": [*called(MARK), called()[2]]},
    "to be continued": {"messages": [*ASK, {"role": "assistant", "content": MARK}],
                        "continue_final_message": True, "add_generation_prompt": False},
    "two answers": {"messages": [*ASK, {"role": "assistant", "content": MARK},
                                 {"role": "assistant", "content": "and"}]},
}  # fmt: skip
EMPTY: list[Message] = [
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": " \n"},
    {"role": "assistant", "content": "", "tool_calls": []},
    {"role": "assistant", "content": "", "reasoning_content": ""},
    {"role": "assistant", "content": [{"type": "text", "text": ""}]},
    {"role": "assistant", "content": "Of course!"},
    {"role": "tool", "content": ""},
    {"role": "system", "content": "Be brief."},
]


def marked(messages: Sequence[Message]) -> str:
    """What a guard says that reads the last turn of its prompt."""
    prompt = guard_prompt(messages)
    talk = prompt.split("<BEGIN CONVERSATION>")[1].split("<END CONVERSATION>")[0]
    last = max(talk.rfind("\n\nUser: "), talk.rfind("\n\nAgent: "))
    return "unsafe\nS2" if MARK in talk[last:] else "safe"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(spoken_service(Speech(STORY), deciding_guard(marked))) as run:
        yield run
        assert run.idle()


def refused(server: Running, body: dict[str, Any], side: str) -> None:
    """The request does not reach the model: the guard found it, in the turn of that side."""
    asked = server.service.engine.statistics.prompt
    answer = server.post("/v1/chat/completions", **{"max_tokens": 5, **body})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "content_filter" and not choice["message"]["content"]
    assert choice["guard"]["input"]["role"] == side and not choice["guard"]["input"]["safe"]
    assert server.service.engine.statistics.prompt == asked


@pytest.mark.parametrize("name", USER)
def test_what_the_client_says_is_judged_as_the_user_s(server: Running, name: str) -> None:
    refused(server, USER[name], "user")


@pytest.mark.parametrize("name", ASSISTANT)
def test_what_the_client_has_the_assistant_say_is_judged(server: Running, name: str) -> None:
    refused(server, ASSISTANT[name], "assistant")


@pytest.mark.parametrize("number", range(len(EMPTY)))
def test_no_turn_at_the_end_turns_the_check_off(server: Running, number: int) -> None:
    for name in ("a text", "an enum", "a grammar", "a refusal"):
        body = {**USER[name], "messages": [*USER[name]["messages"], EMPTY[number]]}
        refused(server, body, "user")
        body["messages"] = [*body["messages"], EMPTY[number]]
        refused(server, body, "user")


def test_what_a_template_is_given_is_in_what_is_judged() -> None:
    for given in ({"about": MARK}, {MARK: True}, {"documents": [{"title": [MARK]}]}):
        (view,) = input_views(ASK, {"chat_template_kwargs": given})
        assert MARK in view[-1]["content"] and view[-1]["role"] == "user"


def test_system_texts_are_judged_where_that_is_asked_for(server: Running) -> None:
    body = {"messages": [{"role": "system", "content": MARK}, *ASK], "max_tokens": 5}
    answer = server.post("/v1/chat/completions", **body).json()
    assert answer["choices"][0]["finish_reason"] != "content_filter"
    options = {"guard_system": True}
    service = spoken_service(Speech(STORY), deciding_guard(marked), **options)
    with running(service) as strict:
        refused(strict, body, "user")


def test_what_is_safe_passes_and_nothing_is_added_to_it(server: Running) -> None:
    for body in ({"messages": ASK}, tool("Tells the time."), schema({"type": "null"}),
                 {"messages": TALK}, {"messages": called()}):  # fmt: skip
        answer = server.post("/v1/chat/completions", **{"max_tokens": 3, **body})
        (choice,) = answer.json()["choices"]
        assert choice["guard"]["input"]["safe"], body
    assert input_views(TALK, {}) == [TALK]
    first, whole = input_views(called(), {"tools": None})
    assert first == ASK and whole == called()
    assert input_views([{"role": "system", "content": "a"}], {}) == [
        [{"role": "system", "content": "a"}]
    ]
