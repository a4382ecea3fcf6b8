"""Texts, Alpaca's columns and ShareGPT's turns as messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamaseek.data.bad_rows import RowError
from llamaseek.errors import shorten
from llamaseek.text.messages import Message

SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system", "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip


def as_messages(place: str, key: str, value: Any, role: str) -> list[Message]:
    """A text as one message of `role`, or a list of messages, ShareGPT's too, as it is."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        found = shorten(repr(value), 60)
        raise RowError(place, "malformed", f"{key} is {found}, not a text or a list of messages")
    return [_message(place, one) for one in value]


def show(row: Any) -> str:
    """A row on one line, for an error."""
    return shorten(str(row))


def _message(place: str, message: Mapping[str, Any]) -> Message:
    if "from" not in message:
        return dict(message)
    speaker, value = message["from"], message.get("value")
    if speaker not in SPEAKERS:
        allowed = ", ".join(SPEAKERS)
        raise RowError(place, "malformed", f"from is {speaker!r}; allowed: {allowed}")
    rest = {"train": message["train"]} if "train" in message else {}
    if speaker == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _calls(place, value), **rest}
    return {"role": SPEAKERS[speaker], "content": value, **rest}


def _calls(place: str, value: Any) -> list[dict[str, Any]]:
    """ShareGPT's function_call: JSON text of one call or of several."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) for call in calls):
        found = shorten(repr(value), 60)
        raise RowError(place, "malformed", f"function_call is {found}, not JSON of a call")
    return [{"type": "function", "function": dict(call)} for call in calls]


def alpaca_prompt(place: str, row: Mapping[str, Any]) -> list[Message]:
    """System, history, then the instruction with its input on a line of its own."""
    messages = system_column(row)
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(place, "malformed", f"history holds {show(pair)}, not a pair of texts")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": text})
    parts = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise RowError(place, "malformed", "instruction and input must be texts")
    return [*messages, {"role": "user", "content": "\n".join(part for part in parts if part)}]


def system_column(row: Mapping[str, Any]) -> list[Message]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def tools_column(row: Mapping[str, Any]) -> Any:
    """The tools column, also as JSON text."""
    tools = row.get("tools")
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools) if tools.strip() else None
    except ValueError:
        return tools  # refused by name where the conversation is encoded
