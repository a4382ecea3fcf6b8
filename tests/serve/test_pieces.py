"""JSON that is counted before it is parsed, and written in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaseek.serve.options import Limits
from llamaseek.serve.wire.bodies import SMALL, parse
from llamaseek.serve.wire.counting import count_json, is_larger, sizes
from llamaseek.serve.wire.errors import ApiError
from llamaseek.serve.wire.logprobs import chat_logprobs
from llamaseek.serve.wire.pieces import PIECE, LongList, json_pieces
from llamaseek.serve.wire.streaming import event
from tests.serve.running import TOKENIZER, Running, make_service, running
from tests.serve.test_malformed import CHAT, COMPLETIONS, check, raw

TEXTS = st.text(st.sampled_from('a"\\[]{},:é🦊\n'), max_size=12)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=40
)


def counted(value: Any) -> tuple[int, int, int]:
    """Values, objects and arrays, keys."""
    if not isinstance(value, (dict, list)):
        return 1, 0, 0
    inner = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    keys = len(value) if isinstance(value, dict) else 0
    values, containers, more = (sum(each) for each in zip((0, 0, 0), *inner, strict=True))
    return 1 + values, 1 + containers, keys + more


@settings(deadline=None)
@given(VALUES, st.booleans())
def test_a_body_is_counted_as_it_is_parsed(value: Any, ascii: bool) -> None:
    *_, (values, containers, keys) = count_json(json.dumps([value], ensure_ascii=ascii).encode())
    wanted = counted([value])
    assert wanted[0] <= values <= wanted[0] + wanted[1] and (containers, keys) == wanted[1:]


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text('["\\,a', max_size=60).map(str.encode))
def test_counting_ends_whatever_is_counted(body: bytes) -> None:
    assert len(list(count_json(body))) <= len(body)


@settings(deadline=None)
@given(VALUES)
def test_pieces_are_the_json_of_the_value(value: Any) -> None:
    assert json.loads("".join(json_pieces(value))) == value
    assert is_larger(value, sum(sizes(value)) - 1) and not is_larger(value, sum(sizes(value)))


def test_long_texts_and_lists_come_in_pieces_of_a_bounded_size() -> None:
    value = {"a": LongList(iter(range(200_000))), "b": "é\n" * PIECE, "c": LongList([]), "d": {}}
    pieces = list(json_pieces(value))
    assert all(PIECE <= len(piece) < 7 * PIECE for piece in pieces[:-1]) and len(pieces) > 15
    wanted = {"a": list(range(200_000)), "b": "é\n" * PIECE, "c": [], "d": {}}
    assert json.loads("".join(pieces)) == wanted
    assert event({"a": [1]}) == 'data: {"a":[1]}\n\n'
    assert "".join(event({"a": LongList(range(3))})) == 'data: {"a":[0,1,2]}\n\n'
    with pytest.raises(ValueError):
        "".join(json_pieces({"a": LongList([float("nan")])}))
    assert chat_logprobs(TOKENIZER, []) == {"content": [], "refusal": None}


@pytest.mark.parametrize(
    ("value", "what"),
    [("[]," * 30_000, "objects and arrays"), ("5," * 600_000, "values"), ("{}," * 30_000, "arrays"),
     ('{"a":0},' * 30_000, "objects and arrays")],
)  # fmt: skip
def test_bodies_of_too_many_values_are_not_parsed(value: str, what: str) -> None:
    with pytest.raises(ApiError, match=what):
        parse(f'{{"prompt":[{value}0]}}'.encode(), Limits())
    assert parse(b'{"a": "' + b"[]," * SMALL + b'"}', Limits()) == {"a": "[]," * SMALL}


@pytest.fixture(scope="module")
def server() -> Any:
    with running(make_service()) as run:
        yield run


def test_what_is_refused_names_its_field(server: Running) -> None:
    keys = ",".join(f'"k{n}": 0' for n in range(5000))
    for field in (f'"logit_bias": {{{keys}}}', keys):
        body = f'{{"model": "tiny", "prompt": "x", {field}}}'.encode()
        assert "4096 keys" in check(raw(server, body), 400, "body")["message"]
    hello = {"role": "user", "content": "hi"}
    check(server.client.post("/tokenize", json={"messages": [hello] * 2000}), 400, "messages")
    call = {"name": "f", "arguments": json.dumps({"a": "b" * 1_000_000})}
    talk = [hello, {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}]
    assert "characters" in check(server.post(CHAT, messages=talk), 400, "messages")["message"]


def test_long_answers_are_whole(server: Running) -> None:
    """Log-probabilities of many tokens are written while they are sent, streamed or not."""
    body = {"prompt": [list(range(5, 200))] * 3, "max_tokens": 20, "echo": True, "logprobs": 20,
            "temperature": 0, "ignore_eos": True}  # fmt: skip
    answer = server.post(COMPLETIONS, **body)
    assert "content-length" not in answer.headers and len(answer.content) > PIECE
    choices = answer.json()["choices"]
    streamed = server.post(COMPLETIONS, stream=True, **body)
    chunks = [json.loads(line[6:]) for line in streamed.text.split("\n\n")[:-2]]
    for choice in choices:
        assert {len(each) for each in choice["logprobs"].values()} == {215}
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        for name in ("tokens", "text_offset", "top_logprobs"):
            joined = [each for part in parts for each in part["logprobs"][name]]
            assert joined == choice["logprobs"][name], name
    ids = server.client.post("/tokenize", json={"prompt": "a fox " * 200}).json()
    assert len(ids["tokens"]) == ids["count"] and server.idle()
