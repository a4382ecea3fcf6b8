"""Hostile response formats by rules and by chance: schemas, regular expressions, Lark grammars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

LETTERS = ("a", "[a-z ]", "\\w", ".", "(a|aa)", "[^b]", "\\d")
Make = Callable[[Random], dict[str, Any]]


def _schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _multiples(rng: Random) -> dict[str, Any]:
    parts = [{"multipleOf": rng.choice((9973, 99991, 9999991))} for _ in range(rng.randint(1, 3))]
    return _schema({"type": "integer", "allOf": parts})


def _patterns(rng: Random) -> dict[str, Any]:
    patterns = [f"^{_expression(rng, 3)}$" for _ in range(rng.randint(1, 4))]
    return _schema({"type": "string", "allOf": [{"pattern": each} for each in patterns]})


def _wide(rng: Random) -> dict[str, Any]:
    count = rng.choice((100, 1000, 3000))
    names = {f"k{n}": {"type": "string"} for n in range(count)}
    return _schema({"type": "object", "properties": names, "required": list(names)})


def _nested(rng: Random) -> dict[str, Any]:
    made: Any = {"type": "string"}
    for _ in range(rng.randint(3, 30)):
        made = {"anyOf": [made, {"type": "array", "items": made}]} if rng.random() < 0.4 else {
            "type": "object", "properties": {"a": made}}  # fmt: skip
        if len(json.dumps(made)) > 60_000:
            break
    return _schema(made)


def _recursive(rng: Random) -> dict[str, Any]:
    inner = {"type": "array", "items": {"$ref": "#"}, "minItems": rng.choice((0, 1, 100))}
    return _schema({"anyOf": [inner, {"type": "null"}] * rng.randint(1, 8)})


def _expression(rng: Random, depth: int) -> str:
    if depth == 0:
        return rng.choice(LETTERS)
    inner = "".join(_expression(rng, depth - 1) for _ in range(rng.randint(1, 3)))
    return f"({inner}){rng.choice(('*', '+', '{1,50}', '{20}', '?', '|x'))}"


def _regex(rng: Random) -> dict[str, Any]:
    return {"type": "regex", "regex": _expression(rng, rng.randint(2, 5))}


def _lark(rng: Random) -> dict[str, Any]:
    names = [f"r{n}" for n in range(rng.randint(1, 5))]

    def side() -> str:
        if rng.random() < 0.2:
            return ""
        parts = [rng.choice((*names, '"x"', "/[a-z ]/")) for _ in range(rng.randint(1, 3))]
        return " ".join(part + rng.choice(("", "", "?", "*", "{50}")) for part in parts)

    rules = [f"{name}: " + " | ".join(side() for _ in range(3)) for name in names]
    return {"type": "lark", "lark": "\n".join(["start: r0", *rules])}


KINDS: tuple[Make, ...] = (_multiples, _patterns, _wide, _nested, _recursive, _regex, _lark)


def by_rules(count: int) -> Iterator[dict[str, Any]]:
    """So many response formats of the kinds above; the same each time."""
    rng = Random("grammars")
    for number in range(count):
        yield KINDS[number % len(KINDS)](rng)


ATOMS = st.sampled_from(["a", "[^a]", "\\w", ".", "", "\\d", "[a-\\U0010FFFF]", "\\pL", "(?i:é)"])
REPEATS = st.sampled_from(["", "*", "+?", "{9}", "{2,99}", "|x", "|"])
EXPRESSIONS = st.one_of(
    st.text("ab.()[]{}|*+?^$\\dwsbpPLu<>=!:,0159-", max_size=40),  # most are none
    st.recursive(
        ATOMS,
        lambda inner: st.tuples(st.lists(inner, min_size=1, max_size=4).map("".join), REPEATS).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
        max_leaves=20,
    ),
)
NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False)
)
NAMES = st.one_of(st.sampled_from(["a", "b", "", "$ref", "\x00", "\u2028"]), st.text(max_size=8))
COUNTS = st.one_of(st.integers(0, 5), st.sampled_from([100, 5000, 10**9]))
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def _limits(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """What a schema may say, by keyword."""
    several, named = (
        st.lists(inner, min_size=1, max_size=4),
        st.dictionaries(NAMES, inner, max_size=4),
    )
    return {
        "type": st.sampled_from(["string", "integer", "number", "null", "array", "object"]),
        "enum": st.lists(PLAIN, max_size=6), "const": PLAIN, "pattern": EXPRESSIONS,
        "minLength": COUNTS, "maxLength": COUNTS, "minItems": COUNTS, "maxItems": COUNTS,
        "minProperties": COUNTS, "maxProperties": COUNTS, "multipleOf": NUMBERS,
        "minimum": NUMBERS, "maximum": NUMBERS, "exclusiveMinimum": NUMBERS,
        "format": st.sampled_from(["date-time", "uuid", "ipv6", "email", "regex", "x"]),
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/a", "http://127.0.0.1:1/x", "x"]),
        "items": inner, "prefixItems": several, "not": inner, "properties": named, "$defs": named,
        "anyOf": several, "oneOf": several, "allOf": several, "additionalProperties": inner,
        "patternProperties": st.dictionaries(EXPRESSIONS, inner, max_size=2),
        "required": st.lists(NAMES, max_size=4), "uniqueItems": st.booleans(),
    }  # fmt: skip


def _some(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A schema of up to four keywords."""
    pairs = [st.tuples(st.just(name), values) for name, values in _limits(inner).items()]
    return st.lists(st.one_of(pairs), max_size=4).map(dict)


SIDES = st.lists(
    st.sampled_from([
        "a", "b", "B", '"x"', '"\\n"', "/[a-z]*/", "/./s", "/(a|a)*b/", "%json {}", "a?", "b*",
        "a{3}", "B+", "(a b | b a)", "b{9,}", "|", "B & /a+/", "~B", "%regex {}", "<[5]>",
    ]),
    max_size=6,
).map(" ".join)  # fmt: skip
GRAMMARS = st.tuples(SIDES, SIDES, SIDES, st.sampled_from(["/[a-z ]/", "/.*/", '"x"', "B", "a"]))
SCHEMAS = st.recursive(st.booleans() | _some(st.just({})), _some, max_leaves=12)
FORMATS = st.one_of(
    SCHEMAS.map(_schema),
    EXPRESSIONS.map(lambda text: {"type": "regex", "regex": text}),
    GRAMMARS.map(
        lambda each: {"type": "lark", "lark": "start: {}\na: {}\nb: {}\nB: {}".format(*each)}
    ),
)


def by_chance(count: int) -> list[dict[str, Any]]:
    """So many response formats that hypothesis draws; the same each time."""
    found: list[dict[str, Any]] = []

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(FORMATS)
    def keep(form: dict[str, Any]) -> None:
        found.append(form)

    keep()
    return found


def formats(count: int) -> Iterator[dict[str, Any]]:
    """Half by rules, half by chance."""
    return chain(by_rules(count - count // 2), by_chance(count // 2))
