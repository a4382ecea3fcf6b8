"""Answers by schema, regular expression and grammar are valid whenever length did not cut them.

The schemas are of the JSON Schema Test Suite's kinds, keyword by keyword, judged by `jsonschema`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import httpx
import jsonschema
import pytest

from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, Running, make_service, running

ROOT = Path(__file__).parents[2]
LEAVES: list[Any] = [
    {"type": "null"},
    {"type": "boolean"},
    {"const": {"a": [1, None]}},
    {"enum": ["red", 7, None, [True]]},
    {"type": "integer", "minimum": -5, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 70},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 90},
    {"type": "number", "minimum": 0.5, "maximum": 2},
    {"type": "string", "minLength": 1, "maxLength": 6},
    {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": ["boolean", "null"]},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 2}]},
    {"oneOf": [{"const": 1}, {"const": "one"}]},
    {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 40}]},
    {"$ref": "#/$defs/word"},
]
WORD = {"word": {"type": "string", "maxLength": 4, "pattern": "^[a-z]*$"}}


def random_schema(rng: Random, depth: int = 0) -> Any:
    """A schema: a leaf, an array, a tuple, an object, or a choice of such."""
    if depth > 1 or rng.random() < 0.25:
        return rng.choice(LEAVES)
    inner = [random_schema(rng, depth + 1) for _ in range(3)]
    kind = rng.choice(["array", "tuple", "object", "map", "any"])
    if kind == "array":
        return {"type": "array", "items": inner[0], "minItems": 1, "maxItems": 3}
    if kind == "tuple":
        return {"type": "array", "prefixItems": inner[:2], "items": False, "minItems": 2}
    if kind == "any":
        return {"anyOf": inner[:2]}
    if kind == "map":
        return {"type": "object", "additionalProperties": inner[0], "maxProperties": 2,
                "propertyNames": {"pattern": "^[a-z]{1,3}$"}}  # fmt: skip
    names = rng.sample(["name", "age", "tags", "x y", "é"], 3)
    return {
        "type": "object",
        "properties": dict(zip(names, inner, strict=True)),
        "required": rng.sample(names, rng.randint(0, 3)),
        "additionalProperties": False,
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size + 5, max_position_embeddings=1024)
    with running(make_service(model, max_num_seqs=64, most_waiting=512)) as run:
        yield run
        assert run.idle()


def answers(server: Running, formats: list[dict[str, Any]], tokens: int) -> list[httpx.Response]:
    """One answer a format, at temperature 1."""

    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            bodies = [
                {"model": "tiny", "prompt": "Go", "max_tokens": tokens, "seed": seed,
                 "response_format": wanted}
                for seed, wanted in enumerate(formats)
            ]  # fmt: skip
            url = f"{server.url}/v1/completions"
            return list(await asyncio.gather(*(client.post(url, json=b) for b in bodies)))

    return asyncio.run(ask_all())


def texts(found: list[httpx.Response]) -> Iterator[tuple[int, str]]:
    """Number and text of those answers that length did not cut."""
    for number, answer in enumerate(found):
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        if choice["finish_reason"] == "stop":
            yield number, choice["text"]


def test_200_json_schemas(server: Running) -> None:
    rng = Random(3)
    schemas = [{**random_schema(rng), "$defs": WORD} for _ in range(400)]
    formats = [
        {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
        for schema in schemas
    ]
    found = answers(server, formats, 250)
    # what llguidance cannot say is refused before it begins, by name
    taken = [n for n, answer in enumerate(found) if answer.status_code == 200][:200]
    refused = [answer for answer in found if answer.status_code != 200]
    for answer in refused:
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "response_format"
    assert len(taken) == 200
    whole = 0
    for place, text in texts([found[n] for n in taken]):
        schema = schemas[taken[place]]
        checker = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.FormatChecker(["date", "ipv4", "uuid"])
        )
        checker.validate(json.loads(text))
        whole += 1
    print(f"{whole} of 200 not cut; {len(refused)} of 400 refused")
    assert whole > 150


REFUSED: dict[str, dict[str, Any]] = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {}},
    "uniqueItems": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "a"}},
    "dependencies": {"dependencies": {"a": ["b"]}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {}}},
    "unevaluatedItems": {"type": "array", "unevaluatedItems": False},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "format": {"type": "string", "format": "strange"},
    "oneOf": {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "references": {"type": "string", "pattern": "(a)\\1"},
}


def test_what_no_answer_could_be_held_to_is_refused_by_its_name(server: Running) -> None:
    told = (ROOT / "docs" / "serving.md").read_text()
    for name, schema in REFUSED.items():
        for kind in ("json_schema", "tool"):
            answer = ask_for(server, schema, kind)
            error = answer.json()["error"]
            assert answer.status_code == 400, (name, answer.text)
            assert error["param"] == ("tools" if kind == "tool" else "response_format")
            assert name in error["message"] or "regex" in error["message"]
            assert name in told


def ask_for(server: Running, schema: dict[str, Any], kind: str) -> httpx.Response:
    """A chat held to a schema as a whole, or in a call."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    if kind == "tool":
        parameters = {"type": "object", "properties": {"it": schema}}
        function = {"name": "f", "parameters": parameters, "strict": True}
        body["tools"] = [{"type": "function", "function": function}]
    else:
        format = {"type": kind, kind: {"name": "it", "schema": schema}}
        body["response_format"] = format
    return server.post("/v1/chat/completions", **body)


def test_regular_expressions_and_grammars(server: Running) -> None:
    patterns = ["[ab]{3,5}c+", "(yes|no)", "[0-9]{4}-[0-9]{2}", "é🦊?x", "(a+)+b", r"\d{1,3}\.\d"]
    chosen = list(islice(cycle(patterns), 60))
    found = answers(server, [{"type": "regex", "regex": pattern} for pattern in chosen], 60)
    done = [(chosen[n], text) for n, text in texts(found)]
    assert len(done) > 40
    for pattern, text in done:
        assert re.fullmatch(pattern, text), (pattern, text)
    grammar = 'start: "(" start ")" | word\nword: /[a-z]{1,3}/'
    done = list(texts(answers(server, [{"type": "lark", "lark": grammar}] * 30, 60)))
    assert len(done) > 15
    for _, text in done:
        depth = text.count("(")
        assert re.fullmatch(r"\(" * depth + "[a-z]{1,3}" + r"\)" * depth, str(text))


def test_chat_by_schema_is_json_of_it(server: Running) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    for stream in (False, True):
        answer = server.post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "hi"}],
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            stream=stream,
        )
        if stream:
            parts = [json.loads(e[6:]) for e in answer.text.split("\n\n")[:-2]]
            text = "".join(p["choices"][0]["delta"].get("content", "") for p in parts)
        else:
            text = answer.json()["choices"][0]["message"]["content"]
        assert json.loads(text) in ({"ok": True}, {"ok": False})
