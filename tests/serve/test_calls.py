"""Calls of tools held to their functions' schemas: the grammar, its reader, the server.

What the grammar lets through is read back by the family's own reader, and judged by `jsonschema`.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from llamaseek.engine.constrain import Constraint, Grammars
from llamaseek.engine.matcher import Matcher
from llamaseek.serve.wire.tools import one_call_a_turn
from llamaseek.text.grammar import BLANK, call_grammar
from llamaseek.text.llama3_parse import may_be_call, plain_calls
from llamaseek.text.messages import ToolCall
from llamaseek.text.parse import IdStream, parse_ids
from llamaseek.text.published import get
from llamaseek.text.special import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END
from llamaseek.text.special import PYTHON_TAG as TAG
from llamaseek.text.tokenizer import Tokenizer
from tests.engine.walk import Walk
from tests.serve.running import TOKENIZER, Running
from tests.serve.spoken import STORY, Speech

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "How is the weather in Bern?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"$ref": "#/$defs/few"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"few": {"type": "integer", "minimum": 1, "maximum": 3}},
}
FUNCTIONS: dict[str, dict[str, Any]] = {"get_weather": CITY, "note": {"type": "object"}}
FAMILIES = ["llama3", "deepseek_v3"]


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Tokenizer:
    """The published one of each family."""
    return Tokenizer.load(get(request.param, tmp_path_factory.mktemp(request.param))[0].parent)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """A model's output as ids; control tokens are spelled."""
    return tokenizer.encode_special(text)


def taken(grammars: Grammars, source: str, ids: list[int]) -> bool:
    """Whether an answer of a grammar may be these ids as a whole."""
    walk, tokenizer = Walk(grammars, Constraint("lark", source)), grammars.tokenizer
    fits = all(walk.accept(token) for token in ids)
    ends = fits and walk.may_end(tokenizer.vocab_size, frozenset(tokenizer.stop_ids))
    walk.close()
    return ends


def written(tokenizer: Tokenizer, name: str, arguments: str, text: str = "") -> str:
    """A call, after text, as a model of the family writes it."""
    if TAG in tokenizer.specials.values():
        return f'{text}{TAG if text else ""}{{"name": "{name}", "parameters": {arguments}}}'
    inner = f"function{CALL_SEP}{name}\n```json\n{arguments}\n```"
    return f"{text}{CALLS_BEGIN}{CALL_BEGIN}{inner}{CALL_END}{CALLS_END}"


ARGUMENTS = [
    ("get_weather", '{"city": "Bern", "days": 3}', True),
    ("get_weather", '{"city": "Oslo", "days": 3}', False),
    ("get_weather", '{"city": "Bern", "days": 4}', False),
    ("get_weather", '{"city": "Bern"}', False),
    ("get_weather", '{"city": "Bern", "days": 3, "more": 1}', False),
    ("get_weather", "{}", False),
    ("get_weather", "[]", False),
    ("note", "{}", True),
    ("note", '{"any": ["thing", "}```\\n"], "é🦊": null}', True),
    ("note", "5", False),
    ("other", "{}", False),
]


@pytest.mark.parametrize(("name", "arguments", "fits"), ARGUMENTS)
@pytest.mark.parametrize("free", [True, False])
def test_calls_fit_their_schemas(
    tokenizer: Tokenizer, grammars: Grammars, free: bool, name: str, arguments: str, fits: bool
) -> None:
    source = call_grammar(FUNCTIONS, tokenizer, free)
    for text in ("", "Let me see.\n") if free else ("",):
        ids = ids_of(tokenizer, written(tokenizer, name, arguments, text))
        assert taken(grammars, source, ids) is fits
        if fits:
            message = parse_ids(tokenizer, ids)
            (call,) = message["tool_calls"]
            assert call["function"] == {"name": name, "arguments": json.loads(arguments)}
            assert message["content"] == text


def test_text_is_free_only_where_a_call_is_not_asked_for(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    free, held = (call_grammar(FUNCTIONS, tokenizer, free) for free in (True, False))
    texts = ["", "It rains. 🦊\n\n", '  She said: {"name": "note", "parameters": 5}', "a [b](c)"]
    for text in [*texts, f"In words: {TAG}{CALLS_BEGIN}", "<functional", "```json\n{}\n```"]:
        ids = tokenizer.encode(text)
        assert taken(grammars, free, ids) and not taken(grammars, held, ids)
        message = parse_ids(tokenizer, ids)
        assert message["content"] == text and "tool_calls" not in message
    ids = ids_of(tokenizer, written(tokenizer, "note", "{}", "Well: "))
    assert not taken(grammars, held, ids) and not taken(grammars, free, [*ids, *ids])


@pytest.mark.parametrize("tokenizer", ["llama3"], indirect=True)
def test_llama_3_calls_in_no_other_form(tokenizer: Tokenizer, grammars: Grammars) -> None:
    source = call_grammar(FUNCTIONS, tokenizer, True)
    other = [
        '[get_weather(city="Oslo", days=9)]',
        '<function=get_weather>{"city": "Oslo"}</function>',
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
        '\u2003{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        '{"name": "note", "parameters": {}}; {"name": "get_weather", "parameters": {}}',
    ]
    for text in other:
        assert plain_calls(text)
        assert not taken(grammars, source, tokenizer.encode(text))
        assert not taken(grammars, source, ids_of(tokenizer, TAG + text))
    for text in ('get_weather.call(city="Oslo")', "print(5)"):
        assert taken(grammars, source, tokenizer.encode(text))
        assert not taken(grammars, source, ids_of(tokenizer, TAG + text))
    assert {each for each in map(chr, range(0x11_0000)) if may_be_call(each)} == {*BLANK, *"{[<"}


def test_llama_3_0_has_no_token_before_a_call(tmp_path: Path) -> None:
    get("llama3", tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 4096}')
    old = Tokenizer.load(tmp_path)
    assert TAG not in old.specials.values()
    grammars, source = Grammars(old), call_grammar(FUNCTIONS, old, True)
    for text, fits in (
        ('{"name": "get_weather", "parameters": {"city": "Bern", "days": 3}}', True),
        ('{"name": "get_weather", "parameters": {"city": "Oslo", "days": 3}}', False),
        ("It rains.", True),
        ("[get_weather()]", False),
    ):
        assert taken(grammars, source, old.encode(text)) is fits
        if fits:
            assert ("tool_calls" in parse_ids(old, old.encode(text))) == text.startswith("{")


@pytest.mark.parametrize("tokenizer", ["deepseek_v3"], indirect=True)
def test_deepseek_may_call_several_times(tokenizer: Tokenizer, grammars: Grammars) -> None:
    one = written(tokenizer, "get_weather", '{"city": "Rome", "days": 1}')
    two = written(tokenizer, "note", '{"a": 1}')
    both = one.removesuffix(CALLS_END) + "\n" + two.removeprefix(CALLS_BEGIN)
    ids = ids_of(tokenizer, "Two: " + both)
    assert taken(grammars, call_grammar(FUNCTIONS, tokenizer, True), ids)
    assert not taken(grammars, call_grammar(FUNCTIONS, tokenizer, False), ids_of(tokenizer, both))
    message = parse_ids(tokenizer, ids)
    assert [each["function"]["name"] for each in message["tool_calls"]] == ["get_weather", "note"]
    assert message["content"] == "Two: "


def test_whatever_is_drawn_calls_as_its_schema_says(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    """Random tokens, calls more likely than the rest; every call that is read fits."""
    held = {"get_weather": CITY, "empty": {"type": "object", "additionalProperties": False}}
    constraint = Constraint("lark", call_grammar(held, tokenizer, True))
    marks = [TAG] if TAG in tokenizer.specials.values() else [CALLS_BEGIN, CALLS_END]
    begins = [*map(tokenizer.id_of, marks), *tokenizer.encode("{")]
    calls, whole = 0, 0
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        walk, ids = Walk(grammars, constraint), list[int]()
        while len(ids) < 80:
            row = torch.rand(tokenizer.vocab_size, generator=generator)
            row[begins] += 0.5 * (seed % 3)
            walk.matcher.mask(row)
            ids.append(int(row.argmax()))
            if ids[-1] in tokenizer.stop_ids or (walk.accept(ids[-1]) and walk.matcher.ended):
                whole += 1
                break
        walk.close()
        for call in parse_ids(tokenizer, ids).get("tool_calls", []):
            function = call["function"]
            jsonschema.validate(function["arguments"], held[function["name"]])
            calls += 1
    assert calls > 5 and whole > 5


def test_streams_of_any_cut_read_the_same_calls(tokenizer: Tokenizer) -> None:
    """Token by token, and with a token for each byte, as badly cut as text can be."""
    text = written(tokenizer, "note", '{"é🦊": "\\"}```"}', "Sure, 🦊: ")
    whole = ids_of(tokenizer, text)
    split = list[int]()
    for token in whole:
        spelled = tokenizer.token_bytes(token)
        special = token in tokenizer.special_ids
        split += [token] if special else [byte_id(tokenizer, byte) for byte in spelled]
    for ids in (whole, split):
        stream = IdStream(tokenizer)
        events = [event for token in ids for event in stream.push(token)] + stream.finish()
        assert [each for each in events if isinstance(each, ToolCall)] == [
            ToolCall("note", {"é🦊": '"}```'})
        ]
        said = "".join(getattr(each, "text", "") for each in events)
        assert said == "Sure, 🦊: " and "\ufffd" not in said


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    """The token of a single byte; both vocabularies have all 256."""
    (found,) = [n for n in range(256 + 3) if tokenizer.token_bytes(n) == bytes([byte])]
    return found


def tool(name: str, parameters: Any, strict: bool | None = True) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters}
    return {"type": "function", "function": function | ({"strict": strict} if strict else {})}


def asked(server: Running, **body: Any) -> dict[str, Any]:
    """The message of an answer, which is the same as a stream."""
    body = {"messages": ASK, "temperature": 0, "max_tokens": 150, **body}
    (choice,) = server.post(CHAT, **body).json()["choices"]
    message: dict[str, Any] = choice["message"]
    lines = server.post(CHAT, **body, stream=True).text.split("\n\n")
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-2]]
    assert "".join(each.get("content") or "" for each in deltas) == (message["content"] or "")
    streamed = [each["function"] for delta in deltas for each in delta.get("tool_calls", [])]
    assert streamed == [each["function"] for each in message.get("tool_calls", [])]
    return message


WRONG = '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 9}}'
RIGHT = '{"name": "get_weather", "parameters": {"city": "Rome", "days": 2}}'
LOOSE = '{"name": "note", "parameters": {"text": "Oslo"}}'


def test_a_strict_function_is_called_by_its_schema(server: Running, speech: Speech) -> None:
    note = tool("note", {"type": "object", "properties": {"text": {"const": "x"}}}, None)
    tools = [tool("get_weather", CITY), note]
    for said in (WRONG, RIGHT, TAG + RIGHT):
        speech.say(said.removeprefix(TAG))
        speech.ids[:0] = [TOKENIZER.id_of(TAG)] if said.startswith(TAG) else []
        message = asked(server, tools=tools)
        (call,) = message["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, CITY)
        assert (arguments == {"city": "Rome", "days": 2}) == (said is not WRONG)
    speech.say(LOOSE)  # not strict: any object
    (call,) = asked(server, tools=tools)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"text": "Oslo"}
    speech.say(WRONG)  # nothing is strict
    (call,) = asked(server, tools=[tool("get_weather", CITY, None)])["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo", "days": 9}


def test_text_stays_free_beside_strict_functions(server: Running, speech: Speech) -> None:
    speech.say(STORY)
    message = asked(server, tools=[tool("get_weather", CITY)], tool_choice="auto")
    assert message["content"] == STORY and "tool_calls" not in message
    assert asked(server, tools=[tool("get_weather", CITY)], tool_choice="none")["content"] == STORY


@pytest.mark.parametrize("strict", [True, None])
def test_a_call_that_is_asked_for_fits_whether_strict_or_not(
    server: Running, speech: Speech, strict: bool | None
) -> None:
    tools = [tool("get_weather", CITY, strict), tool("note", CITY, None)]
    named = {"type": "function", "function": {"name": "note"}}
    for said in (STORY, WRONG, LOOSE):
        speech.say(said)
        for choice in ("required", named):
            (call,) = asked(server, tools=tools, tool_choice=choice)["tool_calls"]
            jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)
            assert choice == "required" or call["function"]["name"] == "note"


DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"type": "array"}, "'array' is not allowed; allowed: object"),
        ({"type": ["object", "null"]}, "allowed: object"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "tools: "),
        ({"properties": {"a": DEEP}}, "nested deeper"),
        ({"properties": {"a": {"enum": [1]}, "b": {"pattern": "((a{90}){90}){90}"}}}, "repeats"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "tools: "),
        ({"properties": {"a": {"enum": ["x" * 99] * 700}}}, "too large"),
    ],
)
def test_a_schema_that_cannot_hold_a_call_is_refused(
    server: Running, parameters: dict[str, Any], said: str
) -> None:
    answer = server.post(CHAT, messages=ASK, tools=[tool("f", parameters)])
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "tools" and said in error["message"]
    assert "\n" not in error["message"] and len(answer.content) < 4096
    fine = server.post(CHAT, messages=ASK, tools=[tool("f", {}, None)], max_tokens=1)
    assert fine.status_code == 200


def test_strict_calls_and_a_response_format_are_one_too_many(server: Running) -> None:
    body = {"messages": ASK, "response_format": {"type": "json_object"}, "max_tokens": 4}
    answer = server.post(CHAT, **body, tools=[tool("f", {})])
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "response_format"
    assert server.post(CHAT, **body, tools=[tool("f", {}, None)]).status_code == 200


@pytest.mark.parametrize("field", ["tools", "response_format"])
def test_a_limit_that_is_reached_midway_names_its_field(
    server: Running, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    real = Matcher.mask

    def mask(matcher: Matcher, row: torch.Tensor) -> None:
        if threading.current_thread().name == "engine":
            raise RuntimeError("constraint: too much work")
        real(matcher, row)

    monkeypatch.setattr(Matcher, "mask", mask)
    given = {"tools": [tool("f", {})], "response_format": {"type": "json_object"}}
    body = {"messages": ASK, field: given[field]}
    answer = server.post(CHAT, **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field
    error = json.loads(server.post(CHAT, **body, stream=True).text.split("\n\n")[-3][6:])["error"]
    assert error["param"] == field and "too much work" in error["message"]


def test_several_calls_of_an_answer_go_back_as_turns_of_one() -> None:
    call = {name: {"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"}
    result = {name: {"role": "tool", "tool_call_id": name, "content": f"{name}!"} for name in "ab"}
    asked = {"role": "user", "content": "both?"}
    said = {"role": "assistant", "content": "Well.", "tool_calls": [call["a"], call["b"]]}
    first, second = ({**said, "tool_calls": [call[name]]} for name in "ab")
    wanted = [asked, first, result["a"], {**second, "content": None}, result["b"], asked]
    for results in (["a", "b"], ["b", "a"]):
        given = [asked, said, *(result[name] for name in results), asked]
        assert one_call_a_turn(given) == wanted
    for rest in ([], [result["a"]], [result["a"], result["a"]], [result["a"], asked, result["b"]]):
        assert one_call_a_turn([asked, said, *rest]) == [asked, said, *rest]
    for odd in ("ab", [5, 6], [{}, {}], [{"id": [5]}, {"id": {}}], None):
        strange = [{**said, "tool_calls": odd}, result["a"], result["b"]]
        assert one_call_a_turn(strange) == strange
