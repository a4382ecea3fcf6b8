"""The row formats that users have, read into one: messages, or a prompt and ranked answers.

A format is recognized by a row's columns: `messages`; `prompt` and `completion`; `instruction` and
`output` (Alpaca); `conversations` (ShareGPT); `chosen` and `rejected`. Sources: TRL's "Dataset
formats", LLaMA-Factory's `data/README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamaseek.data.bad_rows import RowError
from llamaseek.errors import UserError, shorten, unknown_name
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


COLUMNS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "preference": ("chosen", "rejected"),
}
OPTIONAL = ("input", "system", "history", "tools", "edited")
KNOWN = tuple(dict.fromkeys([*(name for names in COLUMNS.values() for name in names), *OPTIONAL]))
RANKED = ("edited", "chosen", "rejected")  # best first (Llama 3 §4.1.2)


@dataclass(frozen=True)
class Conversation:
    """Messages in one format, and the tools they may call."""

    messages: list[Message]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Ranking:
    """A prompt, and its answers by name, best first."""

    prompt: list[Message]
    answers: dict[str, list[Message]]
    tools: list[Any] | None = None


@dataclass
class RowReader:
    """Reads rows. The first row that can be read fixes the format of its file.

    `columns` names, for our column, the file's own; a dotted name leads into objects and lists
    (`instances.0.output`). `format` "auto" goes by the columns.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    found: dict[str, tuple[str, str]] = field(default_factory=dict)  # file → format, its place

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in KNOWN:
                raise unknown_name("data.columns", name, list(KNOWN))

    def conversation(self, place: str, row: dict[str, Any]) -> Conversation:
        """A conversation to learn from, which ends with an assistant's turn."""
        row = self.mapped(place, row)
        conversation = self._read(place, row, self._format(place, row))
        _check_end(place, conversation.messages)
        return conversation

    def prompt(self, place: str, row: dict[str, Any]) -> Conversation:
        """A conversation to be answered: everything before its last answer, if it has one."""
        row = self.mapped(place, row)
        if "prompt" in row:
            return Conversation(
                as_messages(place, "prompt", row["prompt"], "user"), tools_column(row)
            )
        if "instruction" in row:
            return Conversation(alpaca_prompt(place, row), tools_column(row))
        conversation = self._read(place, row, self._format(place, row))
        messages = conversation.messages
        while messages and messages[-1].get("role") == "assistant":
            messages = messages[:-1]
        if not messages:
            raise RowError(place, "without a prompt", f"has no prompt in {show(row)}")
        return Conversation(messages, conversation.tools)

    def ranking(self, place: str, row: dict[str, Any]) -> Ranking:
        """A prompt with a chosen and a rejected answer, and an edited one if there is one."""
        row = self.mapped(place, row)
        for key in COLUMNS["preference"]:
            if row.get(key) is None:
                raise _lacks(place, row, key)
        names = [name for name in RANKED if row.get(name) is not None]
        answers = {name: as_messages(place, name, row[name], "assistant") for name in names}
        start = self._start(place, row)
        if start is None:
            start, answers = _without_common_start(place, row, answers)
        for name, answer in answers.items():
            if not answer or answer[-1].get("role") != "assistant" or not _says(answer[-1]):
                raise RowError(place, "without an answer", f"{name} is empty in {show(row)}")
        return Ranking(start, answers, tools_column(row))

    def mapped(self, place: str, row: dict[str, Any]) -> dict[str, Any]:
        """The row under our column names."""
        if not self.columns:
            return row
        moved = {path.split(".")[0] for path in self.columns.values()} & set(KNOWN)
        out = {key: value for key, value in row.items() if key not in moved}
        for name, path in self.columns.items():
            out[name] = _follow(place, row, name, path)
        return out

    def _start(self, place: str, row: dict[str, Any]) -> list[Message] | None:
        """The prompt of a ranking in whatever way it is given; None where it is not."""
        if "prompt" in row:
            return as_messages(place, "prompt", row["prompt"], "user")
        if "instruction" in row:
            return alpaca_prompt(place, row)
        for key in ("conversations", "messages"):
            if key in row:
                return system_column(row) + as_messages(place, key, row[key], "user")
        return None

    def _read(self, place: str, row: dict[str, Any], name: str) -> Conversation:
        if name == "messages":
            messages = as_messages(place, "messages", row["messages"], "user")
        elif name == "sharegpt":
            turns = as_messages(place, "conversations", row["conversations"], "user")
            messages = system_column(row) + turns
        elif name == "alpaca":
            output = as_messages(place, "output", row["output"], "assistant")
            messages = alpaca_prompt(place, row) + output
        elif name == "prompt_completion":
            messages = as_messages(place, "prompt", row["prompt"], "user")
            messages = messages + as_messages(place, "completion", row["completion"], "assistant")
        else:
            raise UserError(
                f"{place}: holds pairs of answers (chosen, rejected), for `dpo` and `reward`; "
                "data.columns {completion: chosen} uses the better one"
            )
        return Conversation(messages, tools_column(row))

    def _format(self, place: str, row: dict[str, Any]) -> str:
        file = place.rpartition(":")[0]
        name = self.format
        if name == "auto":
            name = detect(place, row)
            before, where = self.found.setdefault(file, (name, place))
            if name != before:
                raise RowError(
                    place, "in another format", f"is in format {name}, {where} in {before}"
                )
        for column in COLUMNS[name]:
            if column not in row:
                raise _lacks(place, row, column)
        return name


def detect(place: str, row: Mapping[str, Any]) -> str:
    """The format that a row's columns mean; RowError where they mean none, or more than one."""
    fitting = [name for name, columns in COLUMNS.items() if all(map(row.__contains__, columns))]
    if "preference" in fitting:
        return "preference"
    if len(fitting) == 1:
        return fitting[0]
    columns = f"its columns are {shorten(', '.join(row)) or 'none'}"
    if fitting:
        raise RowError(
            place,
            "in no clear format",
            f"could be {' or '.join(fitting)}; {columns}; say which in data.format",
        )
    known = "; ".join(" and ".join(names) for names in COLUMNS.values())
    raise RowError(
        place,
        "in no known format",
        f"is in no known format; {columns}; known: {known}; data.columns can map them",
    )


def _follow(place: str, row: dict[str, Any], name: str, path: str) -> Any:
    value: Any = row
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            columns = shorten(", ".join(row)) or "none"
            raise RowError(
                place,
                "without a column",
                f"has no column {path!r} (data.columns.{name}); its columns are {columns}",
            ) from None
    return value


def _check_end(place: str, messages: list[Message]) -> None:
    role = messages[-1].get("role") if messages else None
    if messages and role in ("user", "system", "tool", "ipython"):
        raise RowError(
            place,
            "not ending with an answer",
            f"ends with a {role} turn, which nothing answers: {show(messages[-1])}",
        )


def _without_common_start(
    place: str, row: dict[str, Any], answers: dict[str, list[Message]]
) -> tuple[list[Message], dict[str, list[Message]]]:
    """An implicit prompt: the messages that all answers begin with."""
    lists = list(answers.values())
    shared = 0
    while all(len(one) > shared for one in lists) and all(
        one[shared] == lists[0][shared] for one in lists
    ):
        shared += 1
    if shared == 0:
        raise RowError(
            place, "without a prompt", f"has no prompt, and its answers share none: {show(row)}"
        )
    return lists[0][:shared], {name: one[shared:] for name, one in answers.items()}


def _says(message: Message) -> bool:
    return bool(message.get("content") or message.get("tool_calls"))


def _lacks(place: str, row: Mapping[str, Any], column: str) -> RowError:
    columns = shorten(", ".join(row)) or "none"
    return RowError(place, "without a column", f"has no {column!r}; its columns are {columns}")
