"""Messages as users write them, checked and made plain.

A message is `{"role", "content"}`; an assistant's may have `tool_calls`, each
`{"type": "function", "function": {"name", "arguments"}}` with the arguments as an object or, as
in OpenAI's API, as JSON text; the result of a call has role `tool` (Llama calls it `ipython`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamaseek.errors import UserError, bad_value
from llamaseek.text.special import END_THINK, THINK

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "ipython", "tool")
RESULTS = ("ipython", "tool")
SYSTEM = ("system", "developer")
"""OpenAI's newer models are instructed by `developer`, which is a system message here."""
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""What an assistant's reasoning goes by; the first name is DeepSeek's, the one that is written."""


@dataclass(frozen=True)
class ToolCall:
    """One whole call of a tool. `written` is the arguments as JSON, as a user's message has them;
    of a call that a model makes it is None.
    """

    name: str
    arguments: dict[str, Any]
    written: str | None = None


@dataclass(frozen=True)
class Turn:
    """One message. A result's role is `tool` and instructions' is `system`, however they came."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as chat templates write it: letters as they are, keys in their order."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def read_messages(messages: Sequence[Message]) -> list[Turn]:
    """The turns of a conversation.

    Raises UserError, naming index and field, unless `messages` is a list of whole messages.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise bad_value("messages", messages, "a list of at least one message")
    return [_read_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The tools' definitions; UserError unless each is an object with a name.

    As in OpenAI's API, `{"type": "function", "function": {"name", "description", "parameters"}}`;
    the inner object alone is taken too. Either is shown to the model as it is given.
    """
    if tools is None:
        return []
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise bad_value("tools", tools, "a list of objects")
    for index, tool in enumerate(tools):
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise bad_value(f"tools[{index}]", tool, "an object whose function has a name")
        json_of(f"tools[{index}]", tool)
    return [dict(tool) for tool in tools]


def _read_message(where: str, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise bad_value(where, message, "an object with role and content")
    if "role" not in message:
        raise UserError(f"{where}.role: missing; a message has a role and a content")
    role = message["role"]
    if role not in (*ROLES, *SYSTEM):
        raise bad_value(f"{where}.role", role, ", ".join(ROLES))
    calls = _read_calls(f"{where}.tool_calls", message)
    if calls and role != "assistant":
        raise UserError(f"{where}.tool_calls: only an assistant calls tools, not {role!r}")
    reasoning = reasoning_of(message)
    if reasoning is not None and (role != "assistant" or not isinstance(reasoning, str)):
        raise bad_value(f"{where}.reasoning_content", reasoning, "an assistant's text")
    role = "tool" if role in RESULTS else "system" if role in SYSTEM else role
    content = _read_content(where, message, role, bool(calls) or reasoning is not None)
    return Turn(role, content, calls, reasoning)


def reasoning_of(message: Mapping[str, Any]) -> Any:
    """What a message gives as its reasoning, by whichever name; None where it has none."""
    return next((message[key] for key in REASONING_KEYS if message.get(key) is not None), None)


def with_reasoning(turn: Turn) -> Turn:
    """A turn with its reasoning before its content, as DeepSeek-R1 writes it.

    For the last turn of a conversation, which is trained on or continued: published templates leave
    out the reasoning of earlier ones.
    """
    if turn.reasoning is None:
        return turn
    content = f"{THINK}\n{turn.reasoning}\n{END_THINK}\n\n{turn.content}"
    return replace(turn, content=content, reasoning=None)


def _read_content(where: str, message: Mapping[str, Any], role: str, optional: bool) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if (content is None or content == []) and optional:
        return ""
    if "content" not in message:
        raise UserError(f"{where}.content: missing; a message has a role and a content")
    if isinstance(content, list) and content and all(map(_is_text_part, content)):
        return "".join(part["text"] for part in content)
    if role == "tool" and isinstance(content, (dict, list)):
        return json_of(f"{where}.content", content)
    raise bad_value(f"{where}.content", content, "a string")


def _is_text_part(part: Any) -> bool:
    """OpenAI's content parts; those of other types are no text."""
    return isinstance(part, Mapping) and part.get("type") == "text" and _is_text(part.get("text"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _read_calls(where: str, message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls")
    if calls is None:
        return ()
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise bad_value(where, calls, "a list of calls")
    return tuple(_read_call(f"{where}[{index}]", call) for index, call in enumerate(calls))


def _read_call(where: str, call: Any) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise bad_value(where, call, "an object with a function")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip() or "\n" in name:
        raise bad_value(f"{where}.function.name", name, "a name on one line")
    return _read_arguments(f"{where}.function.arguments", name, function.get("arguments"))


def given_arguments(given: Any) -> Any:
    """A call's arguments as they are given; some clients write none as an empty text."""
    return {} if isinstance(given, str) and not given.strip() else given


def _read_arguments(where: str, name: str, given: Any) -> ToolCall:
    given = given_arguments(given)
    arguments, text = given, given
    if isinstance(given, str):
        try:
            arguments = json.loads(given)
            json.dumps(arguments, allow_nan=False)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise bad_value(where, given, "an object, or JSON text of one")
    return ToolCall(name, arguments, text if isinstance(text, str) else json_of(where, arguments))


def json_of(where: str, value: Any) -> str:
    """The value as JSON; UserError, naming the place, where it has none."""
    try:
        json.dumps(value, allow_nan=False)
        return to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot be written as JSON ({error})") from None


@dataclass(frozen=True)
class Control:
    """A control token in a model's output, by its name."""

    name: str


@dataclass(frozen=True)
class Content:
    """More of what is said to the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


Event = Content | Reasoning | ToolCall


def text_events(text: str) -> list[Event]:
    """The text as an event, or no event where there is none."""
    return [Content(text)] if text else []
