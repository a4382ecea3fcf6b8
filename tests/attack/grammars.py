"""Hostile schemas, expressions and grammars beside answers that must not wait."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from tests.attack.bodies import CHAT, HELLO
from tests.attack.figures import Figure
from tests.attack.probed import probed

PROMISE = "a harmless constrained answer within 1 s throughout; memory within 300 MB"
FINE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
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


def formats(count: int) -> Iterator[dict[str, Any]]:
    """So many response formats; the same each time."""
    rng = Random("grammars")
    for number in range(count):
        yield KINDS[number % len(KINDS)](rng)


def ask(port: int, form: dict[str, Any], tokens: int) -> int:
    """The status of one answer held to a format."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"model": "tiny", "messages": [HELLO], "max_tokens": tokens, "response_format": form}
    try:
        connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def beside(count: int) -> tuple[float, int, set[int]]:
    """The longest harmless answer in seconds, bytes that the server grew by, all statuses."""
    longest, statuses, over = 0.0, set[int](), threading.Event()
    with probed() as server:
        for _ in range(3):
            ask(server.port, FINE, 20)
        before = server.memory

        def healthy() -> None:
            nonlocal longest
            while not over.is_set():
                begun = time.monotonic()
                statuses.add(ask(server.port, FINE, 20))
                longest = max(longest, time.monotonic() - begun)
                time.sleep(0.05)

        thread = threading.Thread(target=healthy)
        thread.start()
        try:
            statuses.update(ask(server.port, form, 60) for form in formats(count))
        finally:
            over.set()
            thread.join()
        grown = server.memory - before
    return longest, grown, statuses


def campaign() -> Iterator[Figure]:
    """About ten minutes."""
    longest, grown, statuses = beside(300)
    seen = f"longest {longest:.2f} s; {grown / 1e6:.0f} MB more"
    kept = longest <= 1 and grown <= 300e6 and max(statuses) < 500
    yield Figure("300 schemas, expressions and grammars", seen, PROMISE, kept)
