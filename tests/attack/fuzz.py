"""Requests made by chance for every route of the app: broken, odd and sound ones.

Routes and the fields of their bodies are the app's own, so what is added to it is fuzzed too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from fastapi import FastAPI

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, 10**18, -(10**18), 2**31, 2**63, "", "a", " ",
    "\x00", "\u2028", "é\U0001f98a", "\ud83d", "<|eot_id|>", "<|image|>", "tiny", "auto",
    [], [[]], {}, [None], [""], [0], [[5]], [True], {"a": None}, {"": {}}, [{}], [[[[[[]]]]]],
    ["a"] * 300, {str(n): n for n in range(300)}, "x" * 5000, "inf", "NaN", "user", "assistant",
    "tool", "system", "function", "json_object", "../../etc/passwd", "http://[::1]:1/",
    "data:image/png;base64,AAAA",
)  # fmt: skip
PARAMETER = re.compile(r"\{[^}]*\}")
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "num_ctx")
"""Fields that bound an answer: kept small, so that most requests are answered at once."""
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "2"},
    {"role": "developer", "content": "x", "name": "n"},
]  # fmt: skip
SOUND: dict[str, tuple[Any, ...]] = {
    "model": ("tiny",),
    "messages": tuple([each] for each in MESSAGES) 
    + (MESSAGES[:1] * 3, MESSAGES[:1] + MESSAGES[2:6]),
    "prompt": ("The fox", ["a", "b"], [5, 6, 7], [[5], [6, 7]]),
    "input": ("The fox", ["a", "b"], [5, 6], MESSAGES[:1]),
    "tokens": ([5, 6, 7],),
    "text": ("The fox",),
    "stream": (True, True, False),
    "tools": ([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],),
    "response_format": (
        {"type": "json_object"}, {"type": "text"}, {"type": "regex", "regex": "[ab]+"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}},
    ),
    "stop": ("a", ["a", "b"]),
    "temperature": (0, 1.0, 0.7),
}  # fmt: skip
"""What fields of these names take, on whatever route."""


@dataclass(frozen=True)
class Target:
    """A route: a method, a path that may have parameters, and the JSON schema of its body."""

    method: str
    path: str
    schema: dict[str, Any] | None


@dataclass
class Case:
    """A request."""

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str] = field(default_factory=dict)


def targets(app: FastAPI) -> list[Target]:
    """All routes, those that the app's description leaves out too."""
    found = []
    for each in app.routes:
        inner = getattr(each, "effective_route_contexts", None)  # routers that were included
        for route in inner() if inner else [each]:
            body = getattr(route, "body_field", None)
            schema = None if body is None else _schema_of(body.field_info.annotation)
            found += [Target(method, route.path, schema) for method in sorted(route.methods or ())]
    return found


def _schema_of(annotation: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation).json_schema(by_alias=True)


class Fuzz:
    """Makes requests; the same each time."""

    def __init__(self, found: list[Target]) -> None:
        self.rng = Random("fuzz")
        self.targets = found
        self.weights = [6 if target.schema is not None else 1 for target in found]

    def cases(self, count: int) -> Iterator[Case]:
        """So many requests. Each route has had some after as many as there are routes."""
        for number in range(count):
            first = number < len(self.targets)
            target = (
                self.targets[number] if first else self.rng.choices(self.targets, self.weights)[0]
            )
            yield self.case(target)

    def case(self, target: Target) -> Case:
        """One request to a route."""
        rng = self.rng
        path = PARAMETER.sub(lambda _: self.odd_path(), target.path)
        method = (
            target.method if rng.random() < 0.95 else rng.choice(("GET", "PUT", "DELETE", "BREW"))
        )
        if rng.random() < 0.05:
            path += rng.choice(
                ("/", "//", "?a=b", "?stream=true", "%00", "/..", "?" + "a=1&" * 500)
            )
        if path.startswith("/v1/") and rng.random() < 0.1:
            path = path.removeprefix("/v1")  # as some clients ask
        if target.schema is None:
            body = None if rng.random() < 0.8 else b"{}"
            return Case(method, path, body)
        return Case(method, path, self.body(target.schema), self.headers())

    def odd_path(self) -> str:
        """What stands for a parameter of a path."""
        return self.rng.choice(
            ("tiny", "x", "%00", "..%2f..", "%f0%9f%a6%8a", "a" * 3000, "1", "%")
        )

    def headers(self) -> dict[str, str]:
        """JSON, or what lies about it."""
        if self.rng.random() < 0.9:
            return {"Content-Type": "application/json"}
        kinds = (
            "text/plain",
            "application/json; charset=utf-16",
            "multipart/form-data",
            "",
            "\xff",
        )
        return {"Content-Type": self.rng.choice(kinds), "Accept": "text/event-stream"}

    def body(self, schema: dict[str, Any]) -> bytes:
        """A body that mostly fits, and one or a few things about it that may not."""
        rng = self.rng
        value = self.fitting(schema, schema, 0)
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 4))):
            value = self.changed(value)
        self.shorten(value)
        text = json.dumps(value).encode()
        return text if rng.random() < 0.9 else self.torn(text)

    def fitting(self, schema: Any, root: dict[str, Any], depth: int, name: str = "") -> Any:
        """A value that a schema allows, as far as it can be told from its keywords."""
        rng = self.rng
        if name in SOUND and rng.random() < 0.9:
            return json.loads(json.dumps(rng.choice(SOUND[name])))
        if not isinstance(schema, dict) or depth > 6:
            return rng.choice(ODD)
        if "$ref" in schema:
            known = root.get("$defs", {})
            return self.fitting(known.get(schema["$ref"].rpartition("/")[2]), root, depth + 1)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.fitting(rng.choice(schema[several]), root, depth + 1)
        if "const" in schema or "enum" in schema:
            return schema.get("const", rng.choice(schema.get("enum", [None])))
        kinds: dict[str, Callable[[], Any]] = {
            "object": lambda: self.object(schema, root, depth),
            "array": lambda: [
                self.fitting(schema.get("items", {}), root, depth + 1)
                for _ in range(rng.randint(0, 2))
            ],
            "string": lambda: rng.choice(("a", "The fox", "tiny", "é")),
            "integer": lambda: self.number(schema, whole=True),
            "number": lambda: self.number(schema, whole=False),
            "boolean": lambda: rng.random() < 0.5,
            "null": lambda: None,
        }
        return kinds.get(str(schema.get("type")), lambda: rng.choice(ODD))()

    def object(self, schema: dict[str, Any], root: dict[str, Any], depth: int) -> dict[str, Any]:
        """Its required fields and a few of the others."""
        fields, needed = schema.get("properties", {}), schema.get("required", [])
        share = 0.5 if len(fields) < 6 else 2 / len(fields)
        return {
            name: self.fitting(each, root, depth + 1, name)
            for name, each in fields.items()
            if name in needed or name in ("model", *LIMITS) or self.rng.random() < share
        }

    def number(self, schema: dict[str, Any], whole: bool) -> float:
        """One within the bounds, often at one of them."""
        low = schema.get("minimum", schema.get("exclusiveMinimum", -2))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 20))
        found = self.rng.choice((low, high, self.rng.uniform(low, min(high, low + 20))))
        return int(found) if whole else found

    def changed(self, value: Any) -> Any:
        """The value with one thing in it replaced, added, or left out."""
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.85:
            name = rng.choice(list(value))
            if rng.random() < 0.1:
                return {
                    **value,
                    rng.choice(("what", "", "model", "stream", "a" * 500)): rng.choice(ODD),
                }
            if rng.random() < 0.1:
                return {key: each for key, each in value.items() if key != name}
            return {**value, name: self.changed(value[name])}
        if isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return [*value[:at], self.changed(value[at]), *value[at + 1 :]]
        return rng.choice(ODD)

    def shorten(self, value: Any) -> None:
        """Keep answers short, but for a few."""
        if isinstance(value, dict) and self.rng.random() < 0.98:
            for name in LIMITS:
                if name in value:
                    value[name] = self.rng.choice((1, 2, 8))

    def torn(self, text: bytes) -> bytes:
        """The bytes cut, doubled, or with some of them others."""
        rng, at = self.rng, self.rng.randrange(len(text) + 1)
        before, after = text[:at], text[at:]
        return rng.choice((
            before, text + text, before + bytes([rng.randrange(256)]) + after, b"\xff\xfe" + text,
            text.replace(b'"', b"'"), before + b"NaN" + after, b"[" * 500 + text, b"",
            text.replace(b":", b"::", 1), text.decode().encode("utf-16"),
            before + b"\\ud800" + after,
        ))  # fmt: skip
