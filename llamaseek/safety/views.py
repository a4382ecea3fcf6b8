"""The conversations that a guard judges before a model is asked: one for each side.

A guard judges a conversation's last turn. A request has more that reaches the model: tools,
response formats, variables of the template. It may also end with a turn of the assistant, empty
or not, which the client wrote. So the user's last turn is always judged, with all of that in it,
and the assistant's too if the client ends with one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llamaseek.text.messages import REASONING_KEYS, SYSTEM, Message

READ = frozenset({"role", "content", "tool_calls", "tool_call_id", *REASONING_KEYS})
"""Keys whose texts are in a guard's prompt, or have no text."""
ID = re.compile(r"[\w.:-]{0,64}")


def input_views(
    messages: Sequence[Message], shown: Mapping[str, Any], with_system: bool = False
) -> list[list[Message]]:
    """What is to be judged: the conversation up to the user's last turn, and as a whole.

    `shown` is what else the model may be shown, by its field; its JSON stands at the beginning of
    the user's last turn, as do parts of messages that a guard's prompt leaves out. System
    messages are judged as the user's if `with_system`.
    """
    given = [_as_users(message) if with_system else message for message in messages]
    last = max((n for n, each in enumerate(given) if each.get("role") == "user"), default=-1)
    extra = _texts(shown) + [text for message in given for text in _left_out(message)]
    views = []
    if last >= 0 or extra:
        user = given[last] if last >= 0 else {"role": "user", "content": ""}
        views.append([*given[: max(last, 0)], _with_texts(user, extra)])
    after = given[last + 1 :]
    if not views or any(map(_has_text, after)):
        views.append(list(given))
    return views


def _as_users(message: Message) -> Message:
    return {**message, "role": "user"} if message.get("role") in SYSTEM else message


def _texts(shown: Mapping[str, Any]) -> list[str]:
    """A line for each field that has something in it."""
    return [
        f"{name}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in shown.items()
        if value not in (None, [], {})
    ]


def _left_out(message: Message) -> list[str]:
    """Texts of a message that a guard's prompt does not have, as a template may show them."""
    found = [f"{key}: {value}" for key, value in message.items() if value and key not in READ]
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    ids = [message.get("tool_call_id"), *(c.get("id") for c in calls if isinstance(c, dict))]
    return found + [name for name in ids if isinstance(name, str) and not ID.fullmatch(name)]


def _with_texts(message: Message, texts: Sequence[str]) -> Message:
    """A message that begins with these texts."""
    content = message.get("content")
    if not texts:
        return message
    if isinstance(content, list):
        parts = [{"type": "text", "text": f"{text}\n"} for text in texts]
        return {**message, "content": [*parts, *content]}
    return {**message, "content": "\n".join([*texts, str(content or "")])}


def _has_text(message: Message) -> bool:
    """Whether a guard has something to judge in a message."""
    keys = ("content", "tool_calls", *REASONING_KEYS)
    given = [message.get(key) for key in keys]
    return any(value.strip() if isinstance(value, str) else value for value in given)
