"""Llama 3's output, read back.

A call stands alone in a message, or after `<|python_tag|>`: JSON with a name and parameters,
`[name(key=value)]`, `<function=name>{…}</function>`, `name.call(key="value")`, or code.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from llamaseek.text.messages import Control, Event, ToolCall, text_events
from llamaseek.text.special import END_OF_MESSAGE, END_OF_TEXT, END_OF_TURN, PYTHON_TAG

FUNCTION_TAG = re.compile(r"<function=([^<>{}\s]+)>(\{.*\})(?:</function>)?", re.DOTALL)
BUILT_IN_CALL = re.compile(r"\w+\.call\(")
QUERY_CALL = re.compile(r'(\w+)\.call\(query="(.*)"\)', re.DOTALL)
LONGEST_PYTHON = 100_000
"""Characters: Python's parser may need much memory for text that is not a call."""


class LlamaReader:
    """Reads one message. What may still become a call is held until the message ends."""

    ends = frozenset({END_OF_TURN, END_OF_MESSAGE, END_OF_TEXT})
    marks = ends | {PYTHON_TAG}

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._held = ""
        self._tagged = self._flowing = False

    def read(self, item: str | Control) -> list[Event]:
        """The events of this text or control token."""
        if isinstance(item, Control) and not self._tagged:
            content, self._held, self._tagged = self._held, "", True
            return text_events(content)
        self._held += item.name if isinstance(item, Control) else item
        if not self._tagged and (self._flowing or not may_be_call(self._held)):
            self._flowing = True
            content, self._held = self._held, ""
            return text_events(content)
        return []

    def finish(self) -> list[Event]:
        """What was held, now that the message has ended."""
        held, tagged = self._held, self._tagged
        self._begin()
        if tagged:
            calls = tagged_calls(held)
            return [*calls] if calls else text_events(PYTHON_TAG + held)
        return [*plain_calls(held)] or text_events(held)


def may_be_call(text: str) -> bool:
    """Whether a message that begins so can be a call without `<|python_tag|>`."""
    begun = text.lstrip()
    tag = "<function="
    return begun[:1] in ("", "{", "[") or begun.startswith(tag) or tag.startswith(begun)


def plain_calls(text: str) -> list[ToolCall]:
    """The calls that the whole text is, or none."""
    body = text.strip()
    if body.startswith("{"):
        return _json_calls(body)
    if body.startswith("["):
        return _list_calls(body)
    found = FUNCTION_TAG.fullmatch(body)
    arguments = read_object(found[2]) if found else None
    return [ToolCall(found[1], arguments)] if found and arguments is not None else []


def tagged_calls(text: str) -> list[ToolCall]:
    """The calls after `<|python_tag|>`; text of no other form is code."""
    body = text.strip()
    calls = _built_in_call(body) or plain_calls(body)
    if calls or not body or body.startswith(("{", "<function=")):
        return calls
    return [ToolCall("code_interpreter", {"code": text})]


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is, if it is one that can be written again."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_sound(value) else None


def _is_sound(value: Any) -> bool:
    """Whether JSON and UTF-8 can hold it: no NaN, no half of a surrogate pair, no sets."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _json_calls(body: str) -> list[ToolCall]:
    """Objects one after another, with `;` or blanks between; none if any of them is no call."""
    calls, decoder = [], json.JSONDecoder()
    while body:
        try:
            value, end = decoder.raw_decode(body)
        except (ValueError, RecursionError):
            return []
        call = _json_call(value)
        if call is None:
            return []
        calls.append(call)
        body = body[end:].lstrip("; \n")
    return calls


def _json_call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        return None
    fields = {key: each for key, each in value.items() if key != "type"}
    name = fields.pop("name", None)
    arguments = fields.popitem()[1] if fields.keys() in ({"parameters"}, {"arguments"}) else None
    if not is_name(name) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments) if _is_sound(value) else None


def is_name(value: Any) -> bool:
    """Whether a conversation can hold a call by this name."""
    return isinstance(value, str) and bool(value.strip()) and "\n" not in value


def _list_calls(body: str) -> list[ToolCall]:
    found = _python(body)
    calls = [_python_call(each) for each in found.elts] if isinstance(found, ast.List) else []
    return [call for call in calls if call] if all(calls) else []


def _python(body: str) -> ast.expr | None:
    """The expression that the text is in Python, or None."""
    if len(body) > LONGEST_PYTHON:
        return None
    try:
        return ast.parse(body, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _python_call(node: ast.expr) -> ToolCall | None:
    """`name(key=literal, …)` as a call; names may have dots."""
    name = _dotted(node.func) if isinstance(node, ast.Call) and not node.args else None
    if not isinstance(node, ast.Call) or name is None:
        return None
    try:
        given = [(each.arg, ast.literal_eval(each.value)) for each in node.keywords]
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    arguments = {name: value for name, value in given if name is not None}
    if len(arguments) < len(given) or not _is_sound(arguments):
        return None
    return ToolCall(name, json.loads(json.dumps(arguments)))


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c`, or None for what is no name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _built_in_call(body: str) -> list[ToolCall]:
    """`brave_search.call(query="…")`, where quotes within the quotes are as they are."""
    if not BUILT_IN_CALL.match(body):
        return []
    found = _python(body)
    call = None if found is None else _python_call(found)
    if call is not None and call.name.endswith(".call"):
        return [ToolCall(call.name.removesuffix(".call"), call.arguments)]
    query = QUERY_CALL.fullmatch(body)
    return [ToolCall(query[1], {"query": query[2]})] if query else []
