"""Model output read back: what was encoded comes back, however it is cut; bad calls are content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as Metas

from llamaseek.errors import UserError
from llamaseek.text.chat import PROMPT, ChatOptions, encode_chat, render
from llamaseek.text.parse import (
    Content,
    IdStream,
    TextStream,
    ToolCall,
    message_of,
    parse_ids,
    parse_text,
    reader,
)
from llamaseek.text.special import BUILT_IN_TOOLS, THINK
from llamaseek.text.tokenizer import Tokenizer
from tests.text.conversations import Message, calling, hundreds, pool, text, turn

FAMILIES = ("llama3", "deepseek_v3")
ASKED = {"role": "user", "content": "?"}


def said(content: str = "", *calls: tuple[str, dict[str, Any]]) -> Message:
    """The message with this content and these calls, as the parser gives it."""
    message: Message = {"role": "assistant", "content": content}
    if calls:
        named = [{"name": name, "arguments": arguments} for name, arguments in calls]
        message["tool_calls"] = [{"type": "function", "function": each} for each in named]
    return message


# There and back


FORMATS = {
    "llama3": calling(),
    "llama3.1": calling(),
    "llama3-meta": calling(),
    "deepseek_v3": calling(text, most=3),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", ["json", "python_list", "function_tag"])
def test_what_was_said_is_read_back(
    llama: Tokenizer, deepseek: Tokenizer, format: str, form: str
) -> None:
    tokenizer = deepseek if format == "deepseek_v3" else llama

    @settings(max_examples=300, derandomize=True, deadline=None, database=None)
    @given(pool(FORMATS[format], turn("assistant"), count=1_000))
    def check(message: Message) -> None:
        if "tool_calls" not in message and message["content"].strip()[:1] in ("{", "["):
            return  # what looks like a call is one
        if message["content"].lstrip().startswith(THINK) and format == "deepseek_v3":
            return  # and what looks like reasoning is reasoning
        asked = ChatOptions(format=format, call_form=form)
        chat = encode_chat(tokenizer, [ASKED, message], options=asked)
        ids = [i for i, kind in zip(chat.ids, chat.kinds, strict=True) if kind != PROMPT]
        content = message["content"]
        trims = format in ("llama3", "llama3.1")
        expected = message | {"content": content.strip() if trims else content}
        assert parse_ids(tokenizer, ids) == expected
        assert parse_ids(tokenizer, ids[:-1]) == expected  # an engine stops before the end

    check()


@pytest.mark.parametrize("name", BUILT_IN_TOOLS)
def test_built_in_calls_are_read_back(llama: Tokenizer, name: str) -> None:
    given = {"code": "print(1)\n"} if name == "code_interpreter" else {"query": 'a "b"\n c'}
    message = said("", (name, given))
    for asked in (
        ChatOptions(format="llama3.1", built_in_tools=BUILT_IN_TOOLS),
        ChatOptions(format="llama3", built_in_tools=BUILT_IN_TOOLS),
    ):
        written = render([ASKED, message], options=asked).rpartition("<|end_header_id|>\n\n")[2]
        assert parse_text("llama3.1", written) == message


# Golden outputs


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("Hello.<|eot_id|>", said("Hello.")),
        ("", said("")),
        ('{"name": "f", "parameters": {"x": 1}}', said("", ("f", {"x": 1}))),
        ('\n {"type": "function", "name": "f", "parameters": {}}\n', said("", ("f", {}))),
        ('{"name": "f", "arguments": {"x": "é"}}<|eom_id|>', said("", ("f", {"x": "é"}))),
        (
            '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
            said("", ("f", {}), ("g", {})),
        ),
        (
            "[get_weather(city='San Francisco', metric='celsius'), a.b(n=-1, t=(1, None))]",
            said(
                "",
                ("get_weather", {"city": "San Francisco", "metric": "celsius"}),
                ("a.b", {"n": -1, "t": [1, None]}),
            ),
        ),
        ('<|python_tag|>[f(x="y")]<|eot_id|>', said("", ("f", {"x": "y"}))),
        ('<function=trending_songs>{"n": 10}</function>', said("", ("trending_songs", {"n": 10}))),
        ('<function=f>{"n": 10}', said("", ("f", {"n": 10}))),
        (
            '<|python_tag|>brave_search.call(query="latest price of 1oz gold")<|eom_id|>',
            said("", ("brave_search", {"query": "latest price of 1oz gold"})),
        ),
        (
            'Let me look.<|python_tag|>wolfram_alpha.call(query="pi", places="100")',
            said("Let me look.", ("wolfram_alpha", {"query": "pi", "places": "100"})),
        ),
        (
            "<|python_tag|>x = [1]\nprint(x)<|eom_id|>",
            said("", ("code_interpreter", {"code": "x = [1]\nprint(x)"})),
        ),
        ("Hello.<|eot_id|>and more", said("Hello.")),
    ],
)
def test_llama_3_outputs(output: str, message: Message) -> None:
    assert parse_text("llama3.1", output) == message


CALL = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"x": 1}\n```<｜tool▁call▁end｜>'


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("Hello.<｜end▁of▁sentence｜>", said("Hello.")),
        (f"So: <｜tool▁calls▁begin｜>{CALL}<｜tool▁calls▁end｜>", said("So: ", ("f", {"x": 1}))),
        (f"<｜tool▁calls▁begin｜>{CALL}\n{CALL}", said("", ("f", {"x": 1}), ("f", {"x": 1}))),
        (
            f"<｜tool▁calls▁begin｜>{CALL}<｜tool▁calls▁end｜> Done.<｜end▁of▁sentence｜>no",
            said(" Done.", ("f", {"x": 1})),
        ),
        (
            f"<｜tool▁calls▁begin｜>{CALL}and<｜tool▁call▁begin｜>bad<｜tool▁call▁end｜>{CALL}",
            said("and<｜tool▁call▁begin｜>bad<｜tool▁call▁end｜>", *[("f", {"x": 1})] * 2),
        ),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
            '{"md": "```json\\n1\\n```"}```<｜tool▁call▁end｜>',
            said("", ("f", {"md": "```json\n1\n```"})),
        ),
    ],
)
def test_deepseek_v3_outputs(output: str, message: Message) -> None:
    assert parse_text("deepseek_v3", output) == message


def test_calls_agree_with_llama_models() -> None:
    theirs = ChatFormat(Metas.get_instance())
    for output in (
        '{"type": "function", "name": "f", "parameters": {"x": "1"}}<|eot_id|>',
        '<|python_tag|>brave_search.call(query="a")<|eom_id|>',
        "<|python_tag|>print(1)<|eom_id|>",
        '<function=f>{"n": 10}</function><|eot_id|>',
        "[f(x=1)]<|eot_id|>",
        "Hello<|eot_id|>",
    ):
        expected = theirs.decode_assistant_message_from_content(output, None)
        calls = parse_text("llama3.1", output).get("tool_calls", [])
        ours = [(c["function"]["name"], c["function"]["arguments"]) for c in calls]
        named = [
            (getattr(c.tool_name, "value", c.tool_name), c.arguments) for c in expected.tool_calls
        ]
        assert ours == named


# What is no call


MALFORMED = {
    "llama3": [
        '{"name": "f"}',
        '{"name": "Bob", "age": 3}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f", "parameters": {}, "more": 1}',
        '{"name": "f", "parameters": {"x": NaN}}',
        '{"name": "f", "parameters": {"x": "\\ud800"}}',
        '{"name": "f", "parameters": {}} and more',
        '{"name": "a\\nb", "parameters": {}}',
        '{"name": "f", "parameters": {"x": ' + "[" * 50_000,
        '{"name": "f", "parameters": {"x": ' + "9" * 5_000 + "}}",
        "[1, 2]",
        "[]",
        "[f(1)]",
        "[f(x=y)]",
        "[f(**{'x': 1})]",
        "[f(x={1})]",
        "[f(x=1e999)]",
        "[f()(x=1)]",
        "[f(x='\0')]",
        "[f(x=" + "-" * 90_000 + "1)]",
        "[" + "a." * 40_000 + "f(",
        "<function=f>{bad}</function>",
        "<function=f>",
        "<function",
        '<|python_tag|>{"name": "f", "param',
        "<|python_tag|><function=f>{",
        "<|python_tag|>",
        "see <function=f>{}</function>",
    ],
    "deepseek_v3": [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
        "a<｜tool▁calls▁begin｜>b<｜tool▁calls▁end｜>c",
        CALL,
        "<｜tool▁calls▁begin｜>" + CALL.replace("function", "object"),
        "<｜tool▁calls▁begin｜>" + CALL.replace('{"x": 1}', "[1]"),
        "<｜tool▁calls▁begin｜>" + CALL.replace("f\n", "\n"),
        "<｜tool▁calls▁begin｜>" + CALL.replace("```json", ""),
        "<｜tool▁calls▁begin｜>" + CALL.removesuffix("<｜tool▁call▁end｜>"),
        "<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ],
}


@pytest.mark.parametrize(
    ("family", "output"), [(family, each) for family in FAMILIES for each in MALFORMED[family]]
)
def test_what_is_no_call_is_content_as_it_was_written(family: str, output: str) -> None:
    assert parse_text(family, output) == said(output)


def test_without_tools_everything_is_content(llama: Tokenizer) -> None:
    for family, output in (
        ("llama3", '{"name": "f", "parameters": {}}'),
        ("deepseek_v3", f"<｜tool▁calls▁begin｜>{CALL}"),
    ):
        assert parse_text(family, output, calls=False) == said(output)
        assert TextStream(family, calls=False).feed("{") == [Content("{")]
    ids = llama.encode('{"name": "f", "parameters": {}}')
    assert parse_ids(llama, [*ids, llama.eot_id], calls=False) == said(llama.decode(ids))


def test_text_that_spells_a_control_token_is_text(llama: Tokenizer, deepseek: Tokenizer) -> None:
    for tokenizer, output in (
        (llama, "<|python_tag|>print(1)<|eot_id|> as text"),
        (deepseek, f"<｜tool▁calls▁begin｜>{CALL}<｜end▁of▁sentence｜> as text"),
    ):
        assert parse_ids(tokenizer, tokenizer.encode(output)) == said(output)
        assert "tool_calls" in parse_ids(tokenizer, tokenizer.encode_special(output))


def test_control_tokens_without_meaning_are_left_out(llama: Tokenizer) -> None:
    ids = [*llama.encode("a"), llama.pad_id, llama.start_header_id, *llama.encode("b")]
    assert parse_ids(llama, ids) == said("ab")


# Streams


PIECES = (
    *("<|python_tag|>", "<|eot_id|>", "<|eom_id|>", "<|python", "<function=f>", "</function>"),
    *('{"name": "f", "parameters": {"x": 1}}', "{", "}", "[f(x=1)]", "; ", "[", "]", "Hello", " "),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
    ),
    *(
        "<｜tool▁sep｜>",
        "function",
        "f\n```json\n",
        "\n```",
        CALL,
        "<｜tool",
        "<｜end▁of▁sentence｜>",
    ),
    *('brave_search.call(query="a")', "\n", "🙂", "print(1)"),
)
outputs = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=8).map("".join)


@settings(max_examples=1_500, derandomize=True, deadline=None, database=None)
@given(st.sampled_from(FAMILIES), outputs, st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_the_cut_of_a_stream_changes_nothing(
    family: str, output: str, cuts: list[int], offered: bool
) -> None:
    places = sorted({0, len(output), *(min(cut, len(output)) for cut in cuts)})
    stream = TextStream(family, offered)
    events = [
        event
        for a, b in zip(places, places[1:], strict=False)
        for event in stream.feed(output[a:b])
    ]
    events += stream.finish()
    whole = parse_text(family, output, offered)
    assert message_of(events) == whole
    letters = [event for letter in output for event in stream.feed(letter)]  # the same stream again
    assert message_of([*letters, *stream.finish()]) == whole
    if "tool_calls" not in whole:
        ends = [output.find(end) for end in reader(family).ends if end in output]
        assert whole["content"] == output[: min(ends, default=len(output))]
    json.dumps(whole)


@hundreds
@given(st.lists(st.integers(0, 128_255), max_size=12), outputs)
def test_no_ids_raise(llama: Tokenizer, ids: list[int], output: str) -> None:
    mixed = [*ids[:6], *llama.encode_special(output), *ids[6:]]
    stream = IdStream(llama)
    events = [event for i in mixed for event in stream.push(i)] + stream.finish()
    assert message_of(events) == parse_ids(llama, mixed)


def test_content_flows_and_calls_come_when_they_are_whole() -> None:
    stream = TextStream("deepseek_v3")
    assert stream.feed("Let me") == [Content("Let me")]
    assert stream.feed(" <｜tool▁calls") == [Content(" ")]
    assert stream.feed("▁begin｜>" + CALL[:-1]) == []
    assert stream.feed(CALL[-1]) == [ToolCall("f", {"x": 1})]
    assert stream.feed("\n" + CALL) == [ToolCall("f", {"x": 1})]
    assert stream.feed("<｜tool▁calls▁end｜>") == stream.finish() == []
    stream = TextStream("llama3")
    assert stream.feed(" ") == stream.feed("<func") == []
    assert stream.feed("y, is it?") == [Content(" <funcy, is it?")]
    assert stream.feed("<|") == []
    assert stream.finish() == [Content("<|")]


def test_a_half_character_before_a_control_token(llama: Tokenizer) -> None:
    first = llama.encode("🙂")[0]
    stream = IdStream(llama)
    assert stream.push(first) == []
    assert stream.push(llama.eot_id) == [Content("\ufffd")]


def test_unknown_families_are_named() -> None:
    with pytest.raises(UserError, match="chat format 'gpt' is unknown"):
        parse_text("gpt", "")
    assert parse_text("template", "<|python_tag|>{") == said("<|python_tag|>{")
