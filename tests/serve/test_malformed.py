"""What cannot be answered is refused: OpenAI's shape, the right status, the field's name."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.running import TOKENIZER, Running, make_service, running

VOCABULARY = TOKENIZER.vocab_size
MEGABYTE = 1 << 20
HELLO = [{"role": "user", "content": "hi"}]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_service()) as run:
        yield run
        assert run.idle()
        assert run.post(COMPLETIONS, prompt="still there").status_code == 200


def check(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error of a response that has to have this status and name this field."""
    assert response.status_code == status, response.text[:300]
    assert len(response.content) < 4096
    assert "Traceback" not in response.text and "/llamaseek/" not in response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    if param is not None:
        assert param in str(body["error"]["param"]), body
    error: dict[str, Any] = body["error"]
    return error


def raw(server: Running, body: bytes, path: str = COMPLETIONS) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return server.client.post(path, content=body, headers=headers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b'{"model": "tiny", "prompt": "x"',
        b'{"model": "tiny", "prompt": "x", "prompt": "y"}',
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": Infinity}',
        b'{"model": "tiny", "prompt": "x", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"model": "tiny", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "\xff\xfe"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": ["x", "\\udfff"]}',
        b"[]",
        b'"text"',
        b"null",
        b"\x00",
        b"\xef\xbb\xbf{}",
    ],
)
def test_bodies_that_are_no_request(server: Running, body: bytes) -> None:
    check(raw(server, body), 400)


def test_bodies_that_are_too_large(server: Running) -> None:
    large = json.dumps({"model": "tiny", "prompt": "x" * 50 * MEGABYTE}).encode()
    check(raw(server, large), 413, "body")

    def chunks() -> Iterator[bytes]:
        for _ in range(6):
            yield b" " * MEGABYTE

    sent = server.client.post(
        COMPLETIONS, content=chunks(), headers={"Content-Type": "application/json"}
    )
    check(sent, 413, "body")


def test_a_stop_of_ten_megabytes_is_too_large(server: Running) -> None:
    check(server.post(COMPLETIONS, prompt="x", stop="x" * 10 * MEGABYTE), 413, "body")
    check(server.post(CHAT, messages=HELLO, stop=["x" * 3 * MEGABYTE]), 400, "stop")


def test_a_megabyte_of_one_character_is_refused_at_once(server: Running) -> None:
    start = time.process_time()
    for character in ("a", " ", "é", "\x7f"):
        check(server.post(COMPLETIONS, prompt=character * MEGABYTE), 400, "prompt")
        messages = [{"role": "user", "content": character * MEGABYTE}]
        check(server.post(CHAT, messages=messages), 400, "messages")
    assert time.process_time() - start < 20


def test_text_of_nul_and_other_controls_is_text(server: Running) -> None:
    answer = server.post(COMPLETIONS, prompt="a\x00b\x1b\u2028", max_tokens=1, echo=True)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"].startswith("a\x00b\x1b\u2028")


@pytest.mark.parametrize(
    "prompt",
    [
        5, None, True, {}, [], [[]], [[], []], "", [""], ["x", 5], [5, "x"], [[5], "x"], [True],
        [1.0], [-1], [VOCABULARY], [2**63], [2**31], [[5], [VOCABULARY]], [[[5]]], [None],
    ],
)  # fmt: skip
def test_prompts(server: Running, prompt: Any) -> None:
    if prompt in ("", [""]):  # the beginning-of-text token alone
        assert server.post(COMPLETIONS, prompt=prompt).status_code == 200
        return
    check(server.post(COMPLETIONS, prompt=prompt), 400, "prompt")
    check(server.post("/v1/embeddings", input=prompt), 400, "input")


@pytest.mark.parametrize(
    "messages",
    [
        [], None, "hi", {}, [5], [[]], [{}], [{"role": "user"}], [{"content": "x"}],
        [{"role": "king", "content": "x"}], [{"role": 5, "content": "x"}],
        [{"role": "user", "content": None}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": 5}}]}],
        [{"role": "assistant", "content": None, "tool_calls": "f"}],
        [{"role": "assistant", "content": None,
          "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "user", "content": "x"}] * 2000,
        [{"role": "user", "content": "x", "voice": "alto"}],
    ],
)  # fmt: skip
def test_messages(server: Running, messages: Any) -> None:
    check(server.post(CHAT, messages=messages), 400, "messages")


@pytest.mark.parametrize(
    ("path", "field"),
    [(COMPLETIONS, "suffix"), (COMPLETIONS, "min_tokens"), (COMPLETIONS, "guided_json"),
     (CHAT, "functions"), (CHAT, "audio"), (CHAT, "store"), (CHAT, "reasoning_effort"),
     (CHAT, "prompt"), ("/v1/embeddings", "dimensions"), ("/tokenize", "text"),
     ("/detokenize", "ids")],
)  # fmt: skip
def test_an_unsupported_field_is_refused_by_name(server: Running, path: str, field: str) -> None:
    given: dict[str, dict[str, Any]] = {
        COMPLETIONS: {"prompt": "x"},
        CHAT: {"messages": HELLO},
        "/v1/embeddings": {"input": "x"},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [5]},
    }
    error = check(server.post(path, **given[path], **{field: 1}), 400, field)
    assert field in error["message"] and "not supported" in error["message"]


def test_an_unsupported_field_within_another_is_refused(server: Running) -> None:
    bad = {"include_usage": True, "chunk": 5}
    check(server.post(COMPLETIONS, prompt="x", stream=True, stream_options=bad), 400, "chunk")
    tool = {"type": "function", "function": {"name": "f", "code": "x"}}
    error = check(server.post(CHAT, messages=HELLO, tools=[tool]), 400)
    assert error["param"] == "tools[0].function.code"


VALUES: list[tuple[str, Any]] = [
    *[("temperature", value) for value in (-1, -0.01, "0.7", True, [1], {})],
    *[("top_p", value) for value in (0, 1.0001, -1, "1", True)],
    *[("top_k", value) for value in (-2, 2**31, 1.5, "5", True)],
    *[("min_p", value) for value in (-0.1, 1.1, "0")],
    *[("repetition_penalty", value) for value in (0, -1, 5e-324, 101, "1")],
    *[("presence_penalty", value) for value in (2.0001, -2.0001, "1", True)],
    *[("frequency_penalty", value) for value in (2.0001, -2.0001, "1")],
    *[("max_tokens", value) for value in (-2, 0, 2**31, 1.5, "5", True)],
    *[("seed", value) for value in (-1, 2**64, 1.5, "1", True)],
    *[("n", value) for value in (0, -1, 17, 10**6, 10**9, 1.5, "2", True)],
    *[("stop", value) for value in (["x"] * 17, "x" * 100_000, [5], 5, [None], {})],
    *[
        ("logit_bias", value)
        for value in ({"x": 1}, {"-1": 1}, {"5": 101}, {"5": -101}, {"5": "1"}, {"1.5": 1},
                      {str(VOCABULARY): 1}, {"9" * 100: 1}, [1], "x", {"٣": 1})
    ],
    *[("stream", value) for value in ("true", 1, [])],
    *[("stream_options", value) for value in ({"include_usage": True}, {"include_usage": 1}, 5)],
    *[("response_format", value) for value in ("json", {}, {"type": "xml"}, {"type": "regex"})],
    ("user", 5),
    ("ignore_eos", "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), VALUES)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_values_out_of_range(server: Running, path: str, field: str, value: Any) -> None:
    given: dict[str, Any] = {"prompt": "x"} if path == COMPLETIONS else {"messages": HELLO}
    check(server.post(path, **given, **{field: value}), 400, field)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        *[(COMPLETIONS, {"logprobs": value}, "logprobs") for value in (21, -1, True, "1", 1.5)],
        *[(CHAT, {"logprobs": value}, "logprobs") for value in (1, "true", 5)],
        *[
            (CHAT, {"logprobs": True, "top_logprobs": value}, "top_logprobs")
            for value in (21, -1, True, "1")
        ],
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (COMPLETIONS, {"best_of": 2}, "best_of"),
        (COMPLETIONS, {"best_of": 1, "n": 2}, "best_of"),
        (COMPLETIONS, {"echo": "yes"}, "echo"),
        (COMPLETIONS, {"prompt": ["x"] * 65}, "prompt"),
        (COMPLETIONS, {"prompt": ["x"] * 64, "n": 3}, "n"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 0}, "max_tokens"),
        (CHAT, {"max_completion_tokens": -2}, "max_completion_tokens"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tool_choice": "some"}, "tool_choice"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools"),
        (CHAT, {"tools": [{"type": "retrieval"}]}, "tools"),
    ],
)  # fmt: skip
def test_fields_of_one_endpoint(
    server: Running, path: str, fields: dict[str, Any], param: str
) -> None:
    given: dict[str, Any] = {"prompt": "x"} if path == COMPLETIONS else {"messages": HELLO}
    check(server.post(path, **{**given, **fields}), 400, param)


INFINITE = [
    '"temperature": 1e999',
    '"logit_bias": {"5": -1e999}',
    '"response_format": {"type": "json_schema", "json_schema": {"name": "n",'
    ' "schema": {"type": "number", "maximum": 1e999}}}',
    '"tools": [{"type": "function", "function": {"name": "f", "strict": true,'
    ' "parameters": {"type": "object", "maxProperties": 1e999}}}]',
]


@pytest.mark.parametrize("field", INFINITE)
def test_numbers_beyond_a_float_are_refused_wherever_they_stand(
    server: Running, field: str
) -> None:
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": "x"}}], {field}}}'
    headers = {"Content-Type": "application/json"}
    error = check(server.client.post(CHAT, content=body, headers=headers), 400, "body")
    assert "1e999 is too large a number" in error["message"]


def test_arguments_of_a_call_are_json_that_can_be_written_again(server: Running) -> None:
    for number in ("1e999", "NaN", "-Infinity"):
        function = {"name": "f", "arguments": f'{{"x": {number}}}'}
        call = {"id": "a", "type": "function", "function": function}
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        check(server.post(CHAT, messages=[*HELLO, said]), 400, "arguments")


def test_a_field_that_is_null_is_one_that_was_not_given(server: Running) -> None:
    nothing = dict.fromkeys(("suffix", "store", "user", "seed", "n", "stop", "logit_bias"))
    assert server.post(COMPLETIONS, prompt="x", max_tokens=1, **nothing).status_code == 200
    check(server.post(COMPLETIONS, prompt=None), 400, "prompt")


def test_what_is_too_long_or_too_many_is_told_with_its_size(server: Running) -> None:
    error = check(server.post(COMPLETIONS, prompt="x", stop="x" * 300), 400, "stop")
    assert "300" in error["message"] and "256" in error["message"]
    with running(make_service(max_num_seqs=2, most_waiting=3)) as small:
        assert small.post(COMPLETIONS, prompt=["x"] * 5, max_tokens=1).status_code == 200
        for path, field in ((COMPLETIONS, "prompt"), ("/v1/embeddings", "input")):
            error = check(small.post(path, **{field: ["x"] * 6}), 400, field)  # not: come later
            assert "6" in error["message"] and "5" in error["message"]


def test_values_at_the_edge_are_taken(server: Running) -> None:
    for fields in (
        {"temperature": 0}, {"temperature": 1e308}, {"temperature": 1e-300}, {"top_p": 1},
        {"top_p": 1e-9}, {"top_p": 5e-324}, {"repetition_penalty": 0.01},
        {"repetition_penalty": 100}, {"top_k": -1}, {"top_k": 0}, {"top_k": 2**31 - 1},
        {"min_p": 0},
        {"min_p": 1}, {"presence_penalty": 2, "frequency_penalty": -2}, {"seed": 2**63 - 1},
        {"logprobs": 0}, {"logprobs": 1}, {"logprobs": 5}, {"logprobs": 6}, {"logprobs": 20},
        {"logit_bias": {"5": -100, "6": 100}}, {"stop": ["x"] * 16}, {"n": 16}, {"user": "me"},
        {"logit_bias": {str(n): -100 for n in range(VOCABULARY)}}, {"max_tokens": 2**31 - 1},
        {"max_tokens": 0, "echo": True}, {"best_of": 2, "n": 2}, {"logit_bias": {}}, {"stop": []},
    ):  # fmt: skip
        found = server.post(COMPLETIONS, **{"prompt": "x", "max_tokens": 2, **fields})
        assert found.status_code == 200, (fields, found.text)


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


@pytest.mark.parametrize(
    "wanted",
    [
        schema({"type": "string", "pattern": "((a{1000}){1000}){1000}"}),
        schema({"type": "string", "pattern": "(?=a)b"}),
        schema({"type": "string", "pattern": "("}),
        schema({"type": "strin"}),
        schema(False),
        schema({"allOf": [{"const": 1}, {"const": 2}]}),
        schema({"enum": []}),
        schema({"$ref": "#"}),
        schema({"$ref": "http://127.0.0.1:9/x.json"}),
        schema({"$ref": "file:///etc/passwd"}),
        schema({"enum": ["x" * 50] * 200_00}),
        schema(nested(33)),
        schema({"patternProperties": {"(a{1000}){1000}": {}}}),
        {"type": "regex", "regex": "(a{1000}){1000}"},
        {"type": "regex", "regex": "((a{100}){100}){100}"},
        {"type": "regex", "regex": "("},
        {"type": "regex", "regex": "a" * 100_000},
        {"type": "lark", "lark": "sta"},
        {"type": "lark", "lark": "start: A\nA: B{1000}\nB: C{1000}\nC: /x{40}/"},
        {"type": "lark", "lark": "start: start"},
        {"type": "lark", "lark": f"start: %json {json.dumps(nested(40))}"},
        {"type": "lark", "lark": 'start: %json [{"pattern": "((a{90}){90}){90}"}]'},
    ],
)
def test_constraints_that_are_refused_in_time(server: Running, wanted: dict[str, Any]) -> None:
    start = time.process_time()
    check(server.post(COMPLETIONS, prompt="x", response_format=wanted), 400, "response_format")
    assert time.process_time() - start < 6


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "regex", "regex": "(a+)+$"},
        {"type": "regex", "regex": "(a|aa)*b{1,1000}c"},
        schema({"type": "array", "minItems": 10**9, "items": {}}),
        schema({"type": "string", "minLength": 10**9}),
        schema({"type": "string", "pattern": "^(a+)+$"}),
        schema({"type": "object", "properties": {"next": {"$ref": "#"}}}),
    ],
)
def test_catastrophic_constraints_cost_nothing(server: Running, wanted: dict[str, Any]) -> None:
    start = time.process_time()
    found = server.post(COMPLETIONS, prompt="x", response_format=wanted, max_tokens=20)
    assert found.status_code == 200 and time.process_time() - start < 6


def test_a_bias_against_all_that_a_grammar_allows_still_fits_it(server: Running) -> None:
    found = server.post(
        COMPLETIONS,
        prompt="x",
        response_format={"type": "regex", "regex": "(yes|no)"},
        logit_bias={str(n): -100 for n in range(VOCABULARY)},
    )
    assert found.json()["choices"][0]["text"] in ("yes", "no")


def test_unknown_models_and_places(server: Running) -> None:
    for path, fields in (
        (COMPLETIONS, {"prompt": "x"}),
        (CHAT, {"messages": HELLO}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [5]}),
    ):
        error = check(server.post(path, **{**fields, "model": "gpt-5" * 1000}), 404, "model")
        assert error["code"] == "model_not_found"
    for name in ("gpt-5", "meta/llama"):
        check(server.client.get(f"/v1/models/{name}"), 404, "model")
    check(server.client.get("/v1/nothing"), 404)
    check(server.client.get("/" + "x" * 5000), 404)
    check(server.client.get(COMPLETIONS), 405)
    check(server.client.delete("/v1/models"), 405)


def test_token_ids_beyond_the_vocabulary(server: Running) -> None:
    for tokens in ([VOCABULARY], [-1], [2**63], [1.0], [True], ["5"]):
        check(server.post("/detokenize", tokens=tokens), 400, "tokens")
    check(server.post("/tokenize"), 400, "prompt")
    check(server.post("/tokenize", prompt="x", messages=HELLO), 400, "prompt")


def test_many_faults_in_one_body_are_told_briefly(server: Running) -> None:
    check(server.post(COMPLETIONS, prompt=[[-n] for n in range(1, 4000)]), 400, "prompt")
    unknown = {f"field{n}" * 20: n for n in range(4000)}
    check(server.post(COMPLETIONS, prompt="x", **unknown), 400)


def test_another_content_type_is_refused(server: Running) -> None:
    body = b'{"model": "tiny", "prompt": "x"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        sent = server.client.post(COMPLETIONS, content=body, headers={"Content-Type": kind})
        assert "application/json" in check(sent, 400, "body")["message"]
