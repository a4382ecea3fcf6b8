"""The row formats that users have, read into one: messages, or a prompt and ranked answers.

A format is recognized by a row's columns (`columns.FORMATS`). Sources: TRL's "Dataset formats",
LLaMA-Factory's `data/README.md`, OpenAI's fine-tuning guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamaseek.data.bad_rows import HINT, RowError, unused_line
from llamaseek.data.columns import (
    FORMATS,
    MappedRow,
    check_columns,
    format_of_row,
    mapped,
)
from llamaseek.data.ratings import as_rating, is_truth, rating_column
from llamaseek.data.tables import without_nulls
from llamaseek.data.turns import as_messages, from_json, joined, same, says_something, show
from llamaseek.errors import UserError, shorten
from llamaseek.recipe.schema import DataRecipe
from llamaseek.text.messages import Message

RANKED = ("edited", "chosen", "rejected")  # best first (Llama 3 §4.1.2)
NULLABLE = ("default", "const")
"""The keys of a JSON schema that null is a value of; elsewhere it fills up a table's struct."""

TRUTHS = {"true": True, "false": False}
REPEATED = 20
"""Characters from which a prompt that an answer begins with is unlikely to be there by chance."""


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
    (`instances.0.output`). `format` "auto" goes by the columns. `unused` counts, for each column
    and message key that nothing read, the rows or messages that have it; those in `ignore` are
    declared as not needed.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: Collection[str] = ()
    found: dict[str, tuple[str, str]] = field(default_factory=dict)  # file → format, its place
    unused: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)  # answers that begin with the prompt
    rows: int = 0

    def __post_init__(self) -> None:
        check_columns(self.columns)

    @classmethod
    def of(cls, data: DataRecipe, used: Collection[str] = ()) -> RowReader:
        """As a recipe asks for it; `used` names columns that something else reads."""
        return cls(data.format, data.columns, {*data.ignore, *used})

    def conversation(self, place: str, row: Mapping[str, Any]) -> Conversation:
        """A conversation to learn from, which ends with an assistant's turn."""
        view = mapped(place, row, self.columns)
        conversation = self._read(place, view, self._format(place, view))
        _check_end(place, conversation.messages)
        _check_good(place, view)
        self._count(row, view)
        return conversation

    def rated(self, place: str, row: Mapping[str, Any]) -> tuple[Conversation, float]:
        """A conversation that ends with an answer, and the answer's rating."""
        view = mapped(place, row, self.columns)
        conversation = self._read(place, view, self._format(place, view))
        _check_end(place, conversation.messages)
        name = rating_column(view)
        rating = as_rating(view[name]) if name is not None else None
        if rating is None:
            raise RowError(place, "without a rating", f"has no rating: {show(row)}")
        self._count(row, view)
        return conversation, rating

    def prompt(self, place: str, row: Mapping[str, Any]) -> Conversation:
        """A conversation to be answered: everything before its last answer, if it has one."""
        view = mapped(place, row, self.columns)
        if "messages" not in view and "conversations" not in view:
            view.alias(FORMATS["preference"].optional)
        start = self._start(place, view, ("prompt", "instruction"))
        if start is None:
            start = self._read(place, view, self._format(place, view)).messages
            while start and start[-1].get("role") == "assistant":
                start = start[:-1]
        if not start:
            raise RowError(place, "without a prompt", f"has no prompt in {show(row)}")
        tools = _tools(view)
        self._count(row, view)
        return Conversation(start, tools)

    def ranking(self, place: str, row: Mapping[str, Any]) -> Ranking:
        """A prompt with a chosen and a rejected answer, and an edited one if there is one."""
        view = mapped(place, row, self.columns)
        columns = FORMATS["preference"]
        view.alias((*columns.required, *columns.optional))
        for key in columns.required:
            if key not in view or view[key] is None:
                raise _lacks(place, view, key)
        names = [name for name in RANKED if view.get(name) is not None]
        answers = {n: self._messages(place, n, view, "assistant") for n in names}
        start = self._start(place, view, ("prompt", "instruction", "conversations", "messages"))
        whole = {n: self._joined(place, n, start or [], one) for n, one in answers.items()}
        tools = _tools(view)
        for name, messages in whole.items():
            if not _answers(messages):
                message = f"{view.name(name)} is empty in {show(row)}"
                raise RowError(place, "without an answer", message)
            _check_calls(place, messages, tools, view)
        prompt = _common_start(place, row, whole)
        answers = {name: messages[len(prompt) :] for name, messages in whole.items()}
        self._count(row, view)
        return Ranking(prompt, answers, tools)

    def notes(self) -> list[str]:
        """What was read of no row, and what is likely to be a mistake, a line each."""
        lines = [
            f"data: {name} begins with the text of its prompt in {n:,} of {self.rows:,} rows; it "
            "is trained on as it is written"
            for name, n in self.repeats.items()
        ]
        unused = {name: n for name, n in self.unused.items() if name not in self.ignore}
        return lines + unused_line(unused)

    def _count(self, row: Mapping[str, Any], view: MappedRow) -> None:
        self.rows += 1
        self.unused.update(k for k, v in row.items() if v is not None and k not in view.used)

    def _messages(self, place: str, name: str, row: MappedRow, role: str) -> list[Message]:
        return as_messages(place, row.name(name), row[name], role, self.unused)

    def _joined(
        self, place: str, name: str, start: list[Message], answer: list[Message]
    ) -> list[Message]:
        texts = [m[-1].get("content") if m else None for m in (start, answer)]
        if all(isinstance(text, str) for text in texts) and len(answer) == 1:
            asked, said = str(texts[0]), str(texts[1])
            if len(asked) >= REPEATED and said.startswith(asked):
                self.repeats[name] += 1
        return joined(place, name, start, answer)

    def _start(self, place: str, row: MappedRow, names: tuple[str, ...]) -> list[Message] | None:
        """The prompt in whichever of these columns it is given; None where it is in none."""
        given = [name for name in names if row.cells.get(name) is not None]
        if not given:
            return _system(place, row, []) or None
        name = given[0]
        if name == "instruction":
            return self._alpaca_prompt(place, row)
        return _system(place, row, self._messages(place, name, row, "user"))

    def _read(self, place: str, row: MappedRow, name: str) -> Conversation:
        columns = FORMATS[name]
        if name == "preference":
            raise UserError(
                f"{place}: holds pairs of answers (chosen, rejected), for `dpo` and `reward`; "
                "data.columns {completion: chosen} uses the better one"
            )
        row.alias((*columns.required, *columns.optional))
        first, last = columns.required[0], columns.required[-1]
        if name == "alpaca":
            start = self._alpaca_prompt(place, row)
        else:
            start = _system(place, row, self._messages(place, first, row, "user"))
        messages = start
        if last != first:
            said = _label(row[last]) if name == "labels" else row[last]
            if said is None or said == "":
                message = f"{row.name(last)} is empty in {show(dict(row))}"
                raise RowError(place, "without an answer", message)
            answer = as_messages(place, row.name(last), said, "assistant", self.unused)
            messages = self._joined(place, last, start, answer)
        tools = _tools(row)
        _check_calls(place, messages, tools, row)
        return Conversation(messages, tools)

    def _alpaca_prompt(self, place: str, row: MappedRow) -> list[Message]:
        """System, history, then the instruction with its input on a line of its own."""
        instruction = row["instruction"]
        if isinstance(instruction, list):
            return _system(place, row, self._messages(place, "instruction", row, "user"))
        messages: list[Message] = []
        for pair in from_json(row.get("history")) or []:
            if not isinstance(pair, list) or len(pair) != 2:
                found = show(pair)
                raise RowError(place, "malformed", f"history holds {found}, not a pair of texts")
            for role, text in zip(("user", "assistant"), pair, strict=True):
                messages.append({"role": role, "content": text})
        parts = [instruction, row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(place, "malformed", "instruction and input must be texts")
        asked = "\n".join(part for part in parts if part)
        return _system(place, row, [*messages, {"role": "user", "content": asked}])

    def _format(self, place: str, row: MappedRow) -> str:
        file = place.rpartition(":")[0]
        name = self.format
        if name == "auto":
            name = format_of_row(place, row)
            before, where = self.found.setdefault(file, (name, place))
            if name != before:
                raise RowError(
                    place, "in another format", f"is in format {name}, {where} in {before}"
                )
        row.alias(FORMATS[name].required)
        for column in FORMATS[name].required:
            if column not in row:
                raise _lacks(place, row, column)
        return name


def _label(value: Any) -> Any:
    """A label that is a number or a truth as text."""
    return str(value).lower() if isinstance(value, bool | int | float) else value


def _system(place: str, row: MappedRow, messages: list[Message]) -> list[Message]:
    """The messages after the system column's text, unless they begin with the same."""
    row.alias(("system",))
    system = row.get("system")
    if not system:
        return messages
    if not isinstance(system, str):
        found = shorten(repr(system), 60)
        raise RowError(place, "malformed", f"system is {found}, not a text")
    first: list[Message] = [{"role": "system", "content": system}]
    if not messages or messages[0].get("role") != "system":
        return first + messages
    if not same(first, messages[:1]):
        message = "the system column and the first message are two different system texts"
        raise RowError(place, "malformed", message)
    return messages


def _tools(row: MappedRow) -> Any:
    """The tools column, also as JSON text of all or of each."""
    row.alias(("tools",))
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = from_json(tools) if tools.strip() else None
    if not isinstance(tools, list):
        return tools
    return [without_nulls(from_json(tool), NULLABLE) for tool in tools]


def _check_calls(place: str, messages: list[Message], tools: Any, row: MappedRow) -> None:
    """Leave out nulls that fill up arguments; RowError for more calls than the row allows."""
    row.alias(("parallel_tool_calls",))
    parallel = _truth(place, "parallel_tool_calls", row.get("parallel_tool_calls"))
    declared = _parameters(tools)
    for index, message in enumerate(messages):
        calls = message.get("tool_calls")
        if not isinstance(calls, list):
            continue
        if parallel is False and len(calls) > 1:
            text = f"messages[{index}].tool_calls: {len(calls)} calls; parallel_tool_calls is false"
            raise RowError(place, "malformed", text)
        message["tool_calls"] = [_without_fillers(call, declared) for call in calls]


def _truth(place: str, key: str, value: Any) -> bool | None:
    """A truth, also as a table of texts has it; RowError for anything else."""
    found = TRUTHS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool) and value not in (None, ""):
        text = f"{key}: {shorten(repr(value), 60)} is not allowed; allowed: true, false"
        raise RowError(place, "malformed", text)
    return found


def _parameters(tools: Any) -> dict[str, Collection[str]]:
    """The names of each tool's parameters, by the tool's name."""
    found: dict[str, Collection[str]] = {}
    for tool in tools if isinstance(tools, list) else []:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        parameters = inner.get("parameters") if isinstance(inner, Mapping) else None
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(properties, Mapping):
            found[str(inner.get("name"))] = properties
    return found


def _without_fillers(call: Any, declared: Mapping[str, Collection[str]]) -> Any:
    """A call without null arguments that its tool does not have: columns of other tools' calls,
    as a table written to JSON has them.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    given, known = function.get("arguments"), declared.get(str(function.get("name")))
    if not isinstance(given, Mapping) or known is None:
        return call
    kept = {name: value for name, value in given.items() if value is not None or name in known}
    return {**call, "function": {**function, "arguments": kept}}


def _answers(messages: list[Message]) -> bool:
    """Whether the last message is an answer that says something."""
    return bool(messages) and messages[-1].get("role") == "assistant" and says_something(
        messages[-1]
    )  # fmt: skip


def _check_good(place: str, view: MappedRow) -> None:
    """RowError for an answer that is labelled as a bad one, as in KTO's rows."""
    name = rating_column(view)
    if name is None or "completion" not in view or not is_truth(view.cells[name]):
        return
    if not as_rating(view[name]):
        text = (
            f"{view.name(name)} is false, so the answer is a bad one and cannot be trained on; "
            f"{HINT}, and `dpo` makes pairs of good and bad answers"
        )
        raise RowError(place, "labelled as bad answers", text)


def _check_end(place: str, messages: list[Message]) -> None:
    """RowError for a conversation that ends with a question, or with an answer that is empty."""
    if not messages:
        raise RowError(place, "without an answer", "holds no messages")
    role = messages[-1].get("role")
    if role in ("user", "system", "tool", "ipython"):
        raise RowError(
            place,
            "not ending with an answer",
            f"ends with a {role} turn, which nothing answers: {show(messages[-1])}",
        )
    for index, message in enumerate(messages):
        empty = message.get("role") == "assistant" and not says_something(message)
        if empty and message.get("train", True) and "content" in message:
            text = f"the answer messages[{index}] is empty in {show(messages)}"
            raise RowError(place, "without an answer", text)


def _common_start(
    place: str, row: Mapping[str, Any], whole: dict[str, list[Message]]
) -> list[Message]:
    """The prompt of a ranking: the messages that all its conversations begin with."""
    lists = list(whole.values())
    shared, most = 0, min(map(len, lists)) - 1
    while shared < most and all(one[shared] == lists[0][shared] for one in lists):
        shared += 1
    if shared <= 0:
        raise RowError(
            place, "without a prompt", f"has no prompt, and its answers share none: {show(row)}"
        )
    return lists[0][:shared]


def _lacks(place: str, row: Mapping[str, Any], column: str) -> RowError:
    columns = shorten(", ".join(row)) or "none"
    return RowError(place, "without a column", f"has no {column!r}; its columns are {columns}")
