"""Messages as a chat template wants them: contents as text or as parts, arguments as objects.

Templates do not say what they take. As llama.cpp does, a short conversation is rendered to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llamaseek.errors import UserError
from llamaseek.text.messages import SYSTEM, Message, given_arguments, reasoning_of

Render = Callable[[list[Message]], str]


class Contents(Enum):
    """What a template takes as the content of a message."""

    TEXT = "text"
    PARTS = "parts"
    EITHER = "either"


def contents_of(render: Render, probe: str) -> Contents:
    """What the template behind `render` takes; `probe` is a character that it does not write."""
    text = _rendered(render, probe)
    parts = _rendered(render, [{"type": "text", "text": probe}])
    if parts.count(probe) != 1 or "type" in parts.replace(text, ""):
        return Contents.TEXT
    return Contents.EITHER if parts == text else Contents.PARTS


def _rendered(render: Render, content: Any) -> str:
    try:
        return render([{"role": "user", "content": content}])
    except UserError:
        return ""


@dataclass(frozen=True)
class Calls:
    """How a template takes calls: their arguments as objects or JSON text, and the content of a
    message that has calls alone as none or as an empty text.
    """

    as_text: bool
    no_content: str | None


CALLS = (Calls(False, None), Calls(True, None), Calls(False, ""), Calls(True, ""))
"""In the order in which they are tried; the first is what transformers' templates take."""


def for_template(messages: Sequence[Message], contents: Contents, calls: Calls) -> list[Message]:
    """The messages as transformers hands them to templates.

    Keys without a value are left out. Reasoning goes by the names that templates read.
    """
    return [_message(message, contents, calls) for message in messages]


def _message(message: Message, contents: Contents, calls: Calls) -> Message:
    made = {key: value for key, value in message.items() if value is not None}
    if made.get("role") in SYSTEM:
        made["role"] = SYSTEM[0]
    if made.get("content") == []:
        del made["content"]
    reasoning = reasoning_of(made)
    if reasoning is not None:
        made = {"thinking": reasoning, **made, "reasoning_content": reasoning}
    if made.get("tool_calls"):
        made["tool_calls"] = [_call(call, calls.as_text) for call in made["tool_calls"]]
    else:
        made.pop("tool_calls", None)
    made.setdefault("content", calls.no_content if "tool_calls" in made else "")
    made["content"] = _content(made["content"], contents)
    return made


def _content(content: Any, contents: Contents) -> Any:
    if contents is Contents.PARTS and isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = isinstance(content, list) and all(map(_is_text_part, content))
    if contents is Contents.TEXT and parts:
        return "".join(part["text"] for part in content)
    return content


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text"


def _call(call: Any, as_text: bool) -> Any:
    function = dict(call["function"])
    given = given_arguments(function.get("arguments"))
    if as_text and not isinstance(given, str):
        given = json.dumps(given, ensure_ascii=False)
    elif not as_text and isinstance(given, str):
        given = json.loads(given)
    function["arguments"] = given
    return {"type": "function", **call, "function": function}
