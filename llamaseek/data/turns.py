"""The messages in a row's cells: OpenAI's, ShareGPT's and plain texts, made one form.

A message becomes role, content, reasoning, calls, and `train: false` where it has no loss.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamaseek.data.bad_rows import RowError
from llamaseek.errors import shorten
from llamaseek.text.messages import REASONING_KEYS, Message

SPEAKERS = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant",
    "ai": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "system": "system", "developer": "system",
    "function_call": "assistant", "observation": "tool", "tool": "tool", "function": "tool",
}  # fmt: skip
"""What ShareGPT's turns are from, and our roles."""

ROLES_ELSEWHERE = ("developer", "function", "human", "gpt", "model")
"""Of these, what messages have as their role: OpenAI's, LLaMA-Factory's and Gemini's names."""

LOSS_KEYS = ("train", "weight", "loss", "training")
"""Keys of whether a message has a loss: axolotl's and ours, OpenAI's, ms-swift's, axolotl's."""

USED_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING_KEYS)
PYTHON_MESSAGES = re.compile(r"\s*\[\s*\{'(role|content|from|value)': ")


def show(row: Any) -> str:
    """A row on one line, for an error."""
    return shorten(str(row))


def as_messages(
    place: str, key: str, value: Any, role: str, unused: Counter[str] | None = None
) -> list[Message]:
    """A text as one message of `role`, or a list of messages, in the form of this module.

    `key` is the column. A text that is JSON of messages, as in a table of texts, is these messages.
    Keys that nothing reads are left out, and counted in `unused` as `key.name`.
    """
    if isinstance(value, str):
        value = _written_messages(place, key, value)
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        value = [from_json(one) for one in value]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        found = shorten(repr(value), 60)
        raise RowError(place, "malformed", f"{key} is {found}, not a text or a list of messages")
    counts = Counter() if unused is None else unused
    return [_message(place, f"{key}[{n}]", one, counts) for n, one in enumerate(value)]


def _written_messages(place: str, key: str, text: str) -> Any:
    """The messages that a text spells in JSON, or the text. RowError for Python's way to write
    them, in which nothing else is likely to be meant.
    """
    found = from_json(text)
    if isinstance(found, list) and all(map(_is_message, found)):
        return found
    if PYTHON_MESSAGES.match(text):
        message = f"{key} holds messages as Python prints them; write them as JSON, or as parquet"
        raise RowError(place, "malformed", f"{message}: {shorten(text, 60)}")
    return text


def _is_message(value: Any) -> bool:
    forms = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return isinstance(value, Mapping) and any(form <= value.keys() for form in forms)


def from_json(value: Any) -> Any:
    """What a JSON text of an object or a list holds; anything else as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _message(place: str, where: str, given: Mapping[str, Any], unused: Counter[str]) -> Message:
    message = {key: value for key, value in given.items() if value is not None}
    role, content = _role(place, where, message), _content(message)
    made: Message = {"role": role} if role is not None else {}
    if message.get("from") == "function_call":
        made |= {"content": None, "tool_calls": _calls(place, content)}
    elif "function_call" in message:  # OpenAI's, before there were several
        made |= {"content": content, "tool_calls": _calls(place, message.pop("function_call"))}
    elif content is not None or any(key in given for key in ("content", "value")):
        made["content"] = content
    made |= {key: message[key] for key in USED_KEYS if key in message and key not in made}
    if not _has_loss(place, where, message, role):
        made["train"] = False
    known = (*USED_KEYS, *LOSS_KEYS, *_forms(message))
    column = where.partition("[")[0]
    unused.update(f"{column}.{key}" for key in message if key not in known)
    unused.update(f"{column}.tool_calls.{key}" for key in _unread(made.get("tool_calls")))
    return made


def _unread(calls: Any) -> Iterator[str]:
    """Keys of calls that nothing reads; calls that are none are refused where they are encoded."""
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield from (key for key in call if key not in ("id", "type", "index", "function"))
            yield from (f"function.{key}" for key in function if key not in ("name", "arguments"))


def _forms(message: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys in which a message of ShareGPT's form has its role and content."""
    return tuple(
        name
        for name, other in (("from", "role"), ("value", "content"))
        if name in message and (other not in message or message[other] == message[name])
    )


def _content(message: Mapping[str, Any]) -> Any:
    return message.get("content", message.get("value"))


def _role(place: str, where: str, message: Mapping[str, Any]) -> Any:
    if "role" in message:
        role = message["role"]
        return SPEAKERS[role] if role in ROLES_ELSEWHERE else role
    speaker = message.get("from")
    if speaker is None:
        return None  # refused by name where the conversation is encoded
    if speaker not in SPEAKERS:
        allowed = ", ".join(SPEAKERS)
        raise RowError(place, "malformed", f"{where}.from is {speaker!r}; allowed: {allowed}")
    return SPEAKERS[speaker]


def _has_loss(place: str, where: str, message: Mapping[str, Any], role: Any) -> bool:
    """Whether a message's own keys leave it in the loss."""
    found = {key: message[key] for key in LOSS_KEYS if key in message}
    for key, value in found.items():
        if value not in (0, 1):  # true and false among them
            text = f"{where}.{key}: {value!r} is not allowed; allowed: true, false, 1, 0"
            raise RowError(place, "malformed", text)
        if value and role != "assistant":
            text = f"{where}.{key}: a {role} turn is never in the loss; allowed: false"
            raise RowError(place, "malformed", text)
    if len({bool(value) for value in found.values()}) > 1:
        text = f"{where}: {' and '.join(found)} say different things about the loss"
        raise RowError(place, "malformed", text)
    return all(found.values())


def _calls(place: str, value: Any) -> list[dict[str, Any]]:
    """A function_call: one call or several, also as JSON text."""
    calls = from_json(value)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) for call in calls):
        found = shorten(repr(value), 60)
        raise RowError(place, "malformed", f"function_call is {found}, not JSON of a call")
    return [{"type": "function", "function": dict(call)} for call in calls]


def says_something(message: Message) -> bool:
    """Whether an answer has a content that is not blank, or calls, or reasoning."""
    content = message.get("content")
    written = content.strip() if isinstance(content, str) else content
    return bool(written or message.get("tool_calls") or _reasoning(message))


def _reasoning(message: Message) -> Any:
    return next((message[key] for key in REASONING_KEYS if message.get(key)), None)


def same(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether messages say the same, whatever blanks are around it."""
    return len(one) == len(other) and all(map(_alike, one, other))


def _alike(one: Message, other: Message) -> bool:
    first, second = (
        {**m, "content": c.strip() if isinstance(c := m.get("content"), str) else c, "train": None}
        for m in (one, other)
    )
    return first == second


def joined(place: str, name: str, start: list[Message], answer: list[Message]) -> list[Message]:
    """The prompt with the answer, which may repeat the prompt, or a part of its end, itself.

    RowError for an answer that begins with another prompt.
    """
    if not start or not answer or answer[0].get("role") == "assistant":
        return start + answer
    for end in range(len(start), len(answer) + 1):
        if same(answer[end - len(start) : end], start):
            return answer
    for size in range(min(len(start), len(answer)), 0, -1):
        if same(start[-size:], answer[:size]):
            return start + answer[size:]
    if start[-1].get("role") in ("assistant", "system"):  # the answer begins with the next turn
        return start + answer
    message = f"{name} begins with a {answer[0].get('role')} turn that is not the prompt's"
    raise RowError(place, "malformed", f"{message}: {show(answer[0])}")
