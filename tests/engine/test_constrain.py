"""Constrained answers are what they have to be, whatever a random model would rather say."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import pytest

from llamaseek.engine.constrain import Constraint
from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError
from tests.models.shapes import tiny_model
from tests.train.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The model has more ids than the tokenizer; none of those may ever come."""
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size + 7)
    return Engine(model, TOKENIZER)


def answers(engine: Engine, kind: str, sources: list[str], tokens: int = 150) -> list[Any]:
    requests = [
        Request(
            prompt=[1, 2, 3],
            params=SamplingParams(
                temperature=1.0,
                seed=seed,
                max_tokens=tokens,
                constraint=Constraint(kind, source),
            ),
        )
        for seed, source in enumerate(sources)
    ]
    return [output.answers[0] for output in engine.generate(requests)]


def random_schema(rng: Random, depth: int = 0) -> dict[str, Any]:
    """A schema with what schemas are made of: objects, arrays, enums, bounds, patterns."""
    leaves: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", "blue", 3, None]},
        {"const": {"a": [1]}},
        {"type": "integer", "minimum": 3, "maximum": 77},
        {"type": "string", "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]{2,4}$"},
        {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 2}]},
    ]
    if depth > 1 or rng.random() < 0.3:
        return rng.choice(leaves)
    if rng.random() < 0.4:
        return {
            "type": "array",
            "items": random_schema(rng, depth + 1),
            "minItems": 1,
            "maxItems": 2,
        }
    names = rng.sample(["name", "age", "tags", "x y"], rng.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": names[:-1],
        "additionalProperties": False,
    }


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits one of our random schemas."""
    if "anyOf" in schema:
        return any(valid(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds = {"boolean": bool, "null": type(None), "string": str, "array": list, "object": dict}
    kind = schema["type"]
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if not isinstance(value, kinds[kind]):
        return False
    if kind == "string":
        fits = re.search(schema.get("pattern", ""), value)
        return bool(fits) and len(value) <= schema.get("maxLength", 99)
    if kind == "array":
        return 1 <= len(value) <= 2 and all(valid(one, schema["items"]) for one in value)
    if kind == "object":
        known = schema["properties"]
        has = set(schema["required"]) <= set(value) <= set(known)
        return has and all(valid(one, known[name]) for name, one in value.items())
    return True


def test_200_json_schemas(engine: Engine) -> None:
    rng = Random(0)
    schemas = [random_schema(rng) for _ in range(200)]
    found = answers(engine, "json_schema", [json.dumps(schema) for schema in schemas])
    whole = [(a, s) for a, s in zip(found, schemas, strict=True) if a.finish == "stop"]
    for answer, schema in whole:
        assert valid(json.loads(answer.text), schema), (answer.text, schema)
    print(f"{len(whole)} of 200 were not cut by their length")
    assert len(whole) > 150


def test_regular_expressions(engine: Engine) -> None:
    patterns = ["[ab]{3,5}c+", "(yes|no)", "[0-9]{4}-[0-9]{2}", "é🦊?x", "(a+)+b"] * 8
    for answer, pattern in zip(answers(engine, "regex", patterns), patterns, strict=True):
        assert answer.finish == "length" or re.fullmatch(pattern, answer.text), answer.text


def test_grammars(engine: Engine) -> None:
    balanced = 'start: "(" start ")" | "x"'
    for answer in answers(engine, "lark", [balanced] * 20, 60):
        depth = answer.text.count("(")
        assert answer.finish == "length" or answer.text == "(" * depth + "x" + ")" * depth


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(a+"),
        ("lark", "sta"),
        ("json_schema", "{"),
        ("json_schema", '{"type": "foo"}'),
        ("xml", "<a/>"),
    ],
)
def test_what_cannot_be_compiled_is_refused(engine: Engine, kind: str, source: str) -> None:
    with pytest.raises(UserError, match="constraint") as caught:
        answers(engine, kind, [source])
    assert len(str(caught.value)) < 300 and not engine.busy


def test_a_constraint_that_nothing_fits_is_refused(engine: Engine) -> None:
    impossible = Constraint("json_schema", '{"$ref": "#"}')
    with pytest.raises(UserError, match="constraint: json_schema"):
        engine.add(Request(prompt=[1], params=SamplingParams(constraint=impossible)))
    assert not engine.busy and engine.pool.used == 0
