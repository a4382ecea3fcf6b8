"""DeepSeek-V3's format: golden strings checked by hand, and the template that circulates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from llamaseek.text.chat import ANSWER, END, PROMPT, ChatOptions, encode_chat, render
from llamaseek.text.special import SENTENCE_BEGIN
from llamaseek.text.tokenizer import Tokenizer
from tests.text.conversations import (
    Message,
    calling,
    clean,
    conversation,
    hundreds,
    ten_thousand,
    text,
    turn,
)

V3 = ChatOptions(format="deepseek_v3")
CIRCULATING = (Path(trl.__file__).parent / "chat_templates" / "deepseekv3.jinja").read_text()


def v3(messages: list[Message], open: bool = False, tools: Any = None) -> str:
    return render(messages, open, tools, V3)


def theirs(messages: list[Message], open: bool = False, source: str = CIRCULATING) -> str:
    """The circulating template's text; it takes arguments as JSON text only."""
    found = render_jinja_template(
        [messages], chat_template=source, bos_token=SENTENCE_BEGIN, add_generation_prompt=open
    )
    return str(found[0][0])


def says(content: str) -> Message:
    return {"role": "assistant", "content": content}


def asks(content: str) -> Message:
    return {"role": "user", "content": content}


def result(content: str) -> Message:
    return {"role": "tool", "content": content}


def calls(*named: tuple[str, str], content: str | None = None) -> Message:
    made = [
        {"type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in named
    ]
    return {"role": "assistant", "content": content, "tool_calls": made}


# Golden strings


def test_a_conversation() -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        asks("1+1?"),
        says("2"),
        {"role": "system", "content": "In words."},
        asks("And 2+2?"),
    ]
    assert v3(talk, open=True) == (
        "<｜begin▁of▁sentence｜>Be brief.\n\nIn words.<｜User｜>1+1?<｜Assistant｜>2"
        "<｜end▁of▁sentence｜><｜User｜>And 2+2?<｜Assistant｜>"
    )
    assert v3([asks("Hi")]) == "<｜begin▁of▁sentence｜><｜User｜>Hi"


CALL_F = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"x": 1}\n```<｜tool▁call▁end｜>'
CALL_G = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>"
F, G = ("f", '{"x": 1}'), ("g", "{}")


def test_calls_and_their_results() -> None:
    talk = [asks("?"), calls(F, G, content="Let me see."), result("1"), result("2")]
    prompt = (
        "<｜begin▁of▁sentence｜><｜User｜>?<｜Assistant｜>Let me see.<｜tool▁calls▁begin｜>"
        f"{CALL_F}\n{CALL_G}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>1<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )
    # after results the model goes on: nothing opens its turn again
    assert v3(talk, open=True) == v3(talk) == prompt
    assert v3([*talk, says("3")]) == f"{prompt}3<｜end▁of▁sentence｜>"
    again = [*talk, calls(G), result("4")]
    assert v3(again) == (
        f"{prompt}<｜tool▁calls▁begin｜>{CALL_G}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>4<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )
    assert v3([*talk, asks("So?")], open=True) == f"{prompt}<｜User｜>So?<｜Assistant｜>"


def test_definitions() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "fünf"}}
    presented = (
        "# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        "<tools>\n"
        '{"type": "function", "function": {"name": "f", "description": "fünf"}}\n'
        '{"name": "g"}\n'
        "</tools>\n\n"
        "For function call returns, you should first print <｜tool▁calls▁begin｜>\n"
        "For each function call, you should return object like:\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜><function_name>\n"
        "```json\n<function_arguments_in_json_format>\n```<｜tool▁call▁end｜>\n"
        "At the end of function call returns, you should print "
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    )
    tools = [tool, {"name": "g"}]
    assert v3([asks("Hi")], True, tools) == (
        f"<｜begin▁of▁sentence｜>{presented}<｜User｜>Hi<｜Assistant｜>"
    )
    system = {"role": "system", "content": "Be brief."}
    assert v3([system, asks("Hi")], True, tools) == (
        f"<｜begin▁of▁sentence｜>Be brief.\n\n{presented}<｜User｜>Hi<｜Assistant｜>"
    )


# The four faults of the template that circulates, and what is right


def test_the_second_calls_have_their_beginning() -> None:
    talk = [asks("a"), calls(F), result("1"), says("One."), asks("b"), calls(G)]
    begun = "<｜Assistant｜><｜tool▁calls▁begin｜>"
    assert theirs(talk).count(begun) == 1  # the fault
    assert v3(talk).count(begun) == 2
    assert v3(talk).endswith(f"<｜User｜>b{begun}{CALL_G}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>")


def test_the_second_results_have_their_beginning() -> None:
    talk = [asks("a"), calls(F), result("1"), says("One."), asks("b"), calls(G), result("2")]
    assert theirs(talk).count("<｜tool▁outputs▁begin｜>") == 1  # the fault
    assert v3(talk).count("<｜tool▁outputs▁begin｜>") == 2
    assert v3(talk).count("<｜tool▁outputs▁end｜>") == 2


def test_the_generation_prompt_asks_for_no_thinking() -> None:
    assert theirs([asks("a")], open=True).endswith("<｜Assistant｜><think>\n")  # the fault
    assert v3([asks("a")], open=True).endswith("<｜User｜>a<｜Assistant｜>")


def test_definitions_are_shown() -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    found = render_jinja_template([[asks("a")]], chat_template=CIRCULATING, tools=tools)[0]
    assert "look_up" not in found[0]  # the fault
    assert "look_up" in v3([asks("a")], tools=tools)


# Where the circulating template is right


plain = [turn(role) for role in ("system", "user", "assistant")]


@ten_thousand
@given(conversation(*plain))
def test_ten_thousand_conversations_as_transformers_has_them(messages: list[Message]) -> None:
    unthinking = [m | {"content": m["content"].replace("</think>", "")} for m in messages]
    assert v3(unthinking) == theirs(unthinking)


@hundreds
@given(conversation(*plain), conversation(calling(text, most=3)))
def test_one_turn_of_calls_as_transformers_has_it(
    messages: list[Message], called: list[Message]
) -> None:
    last = json.loads(json.dumps(called[0]))
    for each in last["tool_calls"]:
        each["function"]["arguments"] = json.dumps(each["function"]["arguments"])
    before = [m | {"content": m["content"].replace("</think>", "")} for m in messages]
    for talk in (
        [*before, last],
        [*before, last, result("1")],
        [*before, last, result("1"), says("2")],
    ):
        assert v3(talk) == theirs(talk)


@hundreds
@given(conversation(*(turn(role, clean) for role in ("system", "user", "assistant"))))
def test_ids_as_transformers_has_them(
    deepseek: Tokenizer, library: Any, messages: list[Message]
) -> None:
    made = library.apply_chat_template(messages, chat_template=CIRCULATING, return_dict=False)
    assert encode_chat(deepseek, messages).ids == made


@pytest.fixture(scope="module")
def library(deepseek_folder: Path) -> Any:
    """The tokenizer in transformers, from its own file."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(deepseek_folder / "tokenizer.json"), bos_token=SENTENCE_BEGIN
    )


# Ids


def test_kinds_of_a_calling_turn(deepseek: Tokenizer) -> None:
    chat = encode_chat(deepseek, [asks("?"), calls(F, content="So: "), result("1"), says("2")])
    spoken = [i for i, kind in zip(chat.ids, chat.kinds, strict=True) if kind == ANSWER]
    assert deepseek.decode(spoken, skip_special=False) == (
        f"So: <｜tool▁calls▁begin｜>{CALL_F}<｜tool▁calls▁end｜>2"
    )
    ends = [i for i, kind in zip(chat.ids, chat.kinds, strict=True) if kind == END]
    assert ends == [deepseek.eos_id] * 2
    assert chat.kinds[0] == PROMPT
    assert [i in deepseek.special_ids for i in chat.ids] == chat.control


@hundreds
@given(conversation(*plain, turn("tool"), calling(text, most=2)))
def test_no_text_becomes_a_control_token(deepseek: Tokenizer, messages: list[Message]) -> None:
    chat = encode_chat(deepseek, messages, add_generation_prompt=True)
    written = [i for i, c in zip(chat.ids, chat.control, strict=True) if not c]
    assert deepseek.special_ids.isdisjoint(written)
    users = sum(message["role"] == "user" for message in messages)
    assert chat.ids.count(deepseek.id_of("<｜User｜>")) == users
    answers = sum(message["role"] == "assistant" for message in messages)
    assert chat.ids.count(deepseek.eos_id) == answers
    assert deepseek.decode(chat.ids, skip_special=False) == v3(messages, open=True)
