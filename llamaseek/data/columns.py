"""The columns of a row under our names, and which of them nothing used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import yaml

from llamaseek.data.bad_rows import RowError
from llamaseek.errors import quoted, shorten, unknown_name


@dataclass(frozen=True)
class Columns:
    """What a format needs, and what it takes beside that."""

    required: tuple[str, ...]
    optional: tuple[str, ...]


BESIDE = ("system", "tools", "parallel_tool_calls")
FORMATS = {
    "messages": Columns(("messages",), BESIDE),
    "prompt_completion": Columns(("prompt", "completion"), ("rating", *BESIDE)),
    "alpaca": Columns(("instruction", "output"), ("input", "history", *BESIDE)),
    "sharegpt": Columns(("conversations",), BESIDE),
    "labels": Columns(("text", "label"), BESIDE),
    "preference": Columns(
        ("chosen", "rejected"),
        ("edited", "prompt", "instruction", "input", "history")
        + ("conversations", "messages", *BESIDE),
    ),
}  # fmt: skip
"""The formats of rows, recognized by the columns that they need."""

KNOWN = tuple(dict.fromkeys(n for c in FORMATS.values() for n in (*c.required, *c.optional)))
ALIASES = {
    "prompt": ("question", "query", "input.messages"),
    "completion": ("answer", "response"),
    "output": ("response",),
    "input": ("context",),
    "conversations": ("conversation",),
    "chosen": ("preferred_output",),
    "rejected": ("non_preferred_output",),
    "system": ("system_prompt", "system_message", "sys"),
    "tools": ("functions", "input.tools"),
    "parallel_tool_calls": ("input.parallel_tool_calls",),
    "label": ("category", "class", "intent", "sentiment"),
}
"""What our columns are called elsewhere (OpenAI's, Dolly's, OpenOrca's names among them); taken
where a row has no column of our name."""


@dataclass
class MappedRow(Mapping[str, Any]):
    """A row under our names, which remembers the columns of the file that were read."""

    cells: dict[str, Any]
    origin: dict[str, str]  # our name → the file's column, where they differ
    used: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Any:
        value = self.cells[name]
        self.used.add(self.name(name))
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.cells

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def name(self, known: str) -> str:
        """The file's own name of a column."""
        return self.origin.get(known, known)

    def alias(self, names: tuple[str, ...]) -> None:
        """Give columns that go by another name ours, where the row has none of that name.

        Capitals and blanks at the ends make no other name: spreadsheets have `Question`.
        """
        plain = {key.strip().lower(): key for key in reversed(self.cells)}
        for name in names:
            for path in (name, *ALIASES.get(name, ())) if name not in self.cells else ():
                found, value = _reached(self.cells, plain.get(path, path))
                if found:
                    self.cells[name] = value
                    self.origin[name] = plain.get(path) or path.split(".")[0]
                    break


def check_columns(columns: Mapping[str, str]) -> None:
    """UserError for a name that no format has."""
    for name in columns:
        if name not in KNOWN:
            raise unknown_name("data.columns", name, list(KNOWN))


def mapped(place: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> MappedRow:
    """The row under our names. `columns` has, for a name of ours, the file's; a dotted one leads
    into objects and lists. RowError where the row has no such column.
    """
    moved = {path.split(".")[0] for path in columns.values()} & set(KNOWN)
    values = {key: value for key, value in row.items() if key not in moved}
    for name, path in columns.items():
        found, values[name] = _reached(row, path)
        if not found:
            given = shorten(", ".join(row)) or "none"
            message = f"has no column {path!r} (data.columns.{name}); its columns are {given}"
            raise RowError(place, "without a column", message)
    return MappedRow(values, {name: path.split(".")[0] for name, path in columns.items()})


def label_of(place: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    """The label of a labelled text; None where it has none."""
    try:
        view = mapped(place, row, columns)
    except RowError:
        return None
    view.alias(("label",))
    return view.get("label")


def _reached(row: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """Whether a dotted path leads to something, and what it is."""
    if path in row:
        return True, row[path]
    value: Any = row
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return False, None
    return True, value


def fitting(row: Mapping[str, Any]) -> list[str]:
    """The formats whose columns a row has; where it has pairs, that is its format."""
    found = [name for name, c in FORMATS.items() if all(map(row.__contains__, c.required))]
    filled = [n for n in found if all(row[c] is not None for c in FORMATS[n].required)]
    found = filled or found  # files that hold several formats have nulls in the others' columns
    return ["preference"] if "preference" in found else found


def format_of_row(place: str, row: MappedRow) -> str:
    """The format that a row's columns mean; RowError where they mean none, or more than one.

    Names of our own come first, then those that `ALIASES` knows.
    """
    used = set(row.used)
    found = fitting(row)
    if not found:
        other = MappedRow(dict(row.cells), dict(row.origin))
        other.alias(KNOWN)
        found = fitting(other)
    row.used = used  # to have looked is not to have used
    columns = f"its columns are {shorten(', '.join(row)) or 'none'}"
    if len(found) == 1:
        return found[0]
    if found:
        message = f"could be {' or '.join(found)}; {columns}; say which in data.format"
        raise RowError(place, "in no clear format", message)
    known = "; ".join(" and ".join(c.required) for c in FORMATS.values())
    message = f"is in no known format; {columns}; known: {known}; {_mapping_hint(row)}"
    raise RowError(place, "in no known format", message)


def _mapping_hint(row: Mapping[str, Any]) -> str:
    """How to map a row's columns: the override that takes its first two texts for a prompt and
    its answer.
    """
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if len(texts) < 2:
        return "data.columns can map them"
    names = dict(zip(FORMATS["prompt_completion"].required, texts, strict=False))
    written = yaml.safe_dump(names, default_flow_style=True, sort_keys=False, width=inf)
    return f"data.columns can map them, as {quoted(f'data.columns={written.strip()}')}"
