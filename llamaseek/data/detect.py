"""What a user's files are: conversations, pairs, ratings, labels, prompts with answers, or text."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llamaseek.data.bad_rows import Row, RowError
from llamaseek.data.columns import FORMATS, KNOWN, MappedRow, format_of_row, mapped
from llamaseek.data.documents import (
    PAGE_ENDINGS,
    TEXT_ENDINGS,
    files_matching,
    files_within,
    read_documents,
)
from llamaseek.data.hub import SCHEME
from llamaseek.data.opened import ending_of
from llamaseek.data.ratings import rating_column
from llamaseek.data.row_sources import file_rows, row_files
from llamaseek.errors import UserError, shorten
from llamaseek.units import counted

Kind = Literal["conversations", "preferences", "ratings", "labels", "prompt_completion", "text"]

TEXTS = ("text", "body", "message", "content", "sentence", "review", "comment", "document")
LABELS = ("label", "category", "class", "intent", "sentiment", "topic", "tag", "type", "target")
QUESTIONS = (
    ("input", "output"), ("user", "assistant"), ("q", "a"), ("source", "target"),
    ("article", "summary"), ("article", "highlights"), ("document", "summary"),
)  # fmt: skip
"""Columns of prompts and their answers in tables that have no columns of a format."""

MOST_LABELS, LONGEST_LABEL = 100, 60
ROWS_A_LABEL = 2
"""A column of labels has at least so many rows for each, on average."""


@dataclass(frozen=True)
class DetectedRows:
    """What files of rows, or of text, are taken for.

    `kind` is what they can train. `format` and `columns` are the values of `data.format`
    and `data.columns` with which a recipe reads them so: `columns` has, for each of our column
    names, the file's own, and leaves out those that are the same. `rows` counts rows, or documents
    of `text`. `uses` says of every column, in the order of the file, what it is read as, and of
    those that nothing reads "not used"; `filled` counts the rows in which it is not null. `labels`
    counts the rows of each label (kind `labels`), `label_column` is the file's name of their
    column; `rating_column` the same for `ratings`. `sentence` says all of it to a person.
    """

    kind: Kind
    rows: int
    sentence: str
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    label_column: str | None = None
    labels: dict[str, int] = field(default_factory=dict)
    rating_column: str | None = None

    @property
    def unused(self) -> dict[str, int]:
        """The columns that nothing reads, with the number of rows that have them."""
        return {name: self.filled[name] for name, use in self.uses.items() if use == NOT_USED}


NOT_USED = "not used"


def detect(
    paths: Sequence[str | Path],
    columns: Mapping[str, str] | None = None,
    encoding: str = "auto",
    form: str = "auto",
) -> DetectedRows:
    """What the files, folders and globs hold, by the names of their columns, and where these say
    nothing by their values: a column of texts beside one of few, short, repeated ones is labelled.

    Every row is read once. `columns` maps names as `data.columns` does, and `form` is
    `data.format`. Files of text (.txt, .md, .py, .html), folders of these, and rows that have a
    `text` alone are `text`, to continue pre-training on. Raises UserError for sources that cannot
    be read, that mix text with rows, or whose columns mean nothing known; it names the columns and
    how to map them.
    """
    texts = [path for path in paths if _holds_text(str(path))]
    if texts:
        others = [path for path in paths if path not in texts]
        if others:
            raise UserError(
                f"{texts[0]} holds text and {others[0]} rows; allowed: files of one kind"
            )
        return _text(sum(1 for _ in read_documents(paths, encoding=encoding)), {}, {})
    table = Table.read(file_rows(paths, encoding))
    return _rows(table, dict(columns or {}), form)


def _holds_text(source: str) -> bool:
    """Whether a source is a file of text, or holds such files and no rows."""
    path = Path(source).expanduser()
    if source.startswith(SCHEME):
        return False
    endings = (*TEXT_ENDINGS, *PAGE_ENDINGS)
    if path.is_file():
        return ending_of(path) in endings
    if path.is_dir():
        found = files_within(path, endings)
    else:
        found = files_matching(str(path), endings) if glob.has_magic(source) else []
    try:
        return bool(found) and not row_files(source)
    except UserError:
        return True


@dataclass
class Table:
    """The columns of all rows: how often each has a value, and few of its distinct values."""

    first: Row
    values: dict[str, Any] = field(default_factory=dict)  # of each column the first but nulls
    rows: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # characters
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # of values that could be labels
    mixed: set[str] = field(default_factory=set)  # columns with other values, or too many

    @classmethod
    def read(cls, rows: Any) -> Table:
        """Go through all rows."""
        table: Table | None = None
        for place, row in rows:
            table = table or cls((place, row))
            table.add(row)
        assert table is not None  # sources without rows are errors
        return table

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row."""
        self.rows += 1
        for name, value in row.items():
            self.filled[name] += value is not None
            if value is not None:
                self.values.setdefault(name, value)
            self.sizes[name] += len(value) if isinstance(value, str) else 0
            if name not in self.mixed and value is not None:
                self._count(name, value)

    def _count(self, name: str, value: Any) -> None:
        counts = self.counts.setdefault(name, Counter())
        plain = isinstance(value, str | bool | int)
        if plain and len(text := label_text(value)) <= LONGEST_LABEL and text:
            counts[text] += 1
        if not plain or len(text) > LONGEST_LABEL or len(counts) > max(MOST_LABELS, self.rows):
            self.mixed.add(name)

    def is_free(self, name: str) -> bool:
        """Whether a column holds longer texts, or more different ones, than labels are."""
        return name in self.mixed or len(self.counts.get(name, ())) > MOST_LABELS

    def labels_of(self, name: str) -> dict[str, int]:
        """The distinct values of a column and their counts; none where they are no labels."""
        counts = self.counts.get(name, Counter())
        few = 2 <= len(counts) <= MOST_LABELS and counts.total() >= ROWS_A_LABEL * len(counts)
        return dict(counts.most_common()) if few and name not in self.mixed else {}


def label_text(value: Any) -> str:
    """A label as it is trained on: numbers and truths as text."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _rows(table: Table, columns: dict[str, str], form: str = "auto") -> DetectedRows:
    place, row = table.first
    view = mapped(place, row, columns)
    try:
        name = format_of_row(place, view) if form == "auto" else form
    except RowError as error:
        if error.reason == "in no clear format" or columns.keys() - {"text", "label"}:
            raise
        return _by_values(table, columns, error)
    view = mapped(place, dict.fromkeys(table.filled) | table.values, columns)
    view.alias((*FORMATS[name].required, *FORMATS[name].optional))
    roles = _roles(view, name)
    if name == "labels" and "text" in roles and not table.is_free(roles.get("label", "")):
        return _labels(table, roles)
    rated = rating_column(view) if name == "prompt_completion" else None
    if rated is not None:
        column = view.origin.get(rated, rated)
        return _described("ratings", table, name, {**roles, "rating": column})
    kind: Kind = {
        "preference": "preferences",
        "prompt_completion": "prompt_completion",
        "alpaca": "prompt_completion",
        "labels": "prompt_completion",
    }.get(name, "conversations")  # type: ignore[assignment]
    return _described(kind, table, name, roles)


def _roles(view: MappedRow, name: str) -> dict[str, str]:
    """Our names of the columns that a format reads, with the file's; ratings come later."""
    columns = FORMATS[name]
    aside = ("rating", *(_instead_of_prompt(view) if name == "preference" else ()))
    return {
        known: view.origin.get(known, known)
        for known in (*columns.required, *columns.optional)
        if known in view and known not in aside
    }


def _instead_of_prompt(view: MappedRow) -> tuple[str, ...]:
    """Of a ranking, the columns that are not read because it has a prompt."""
    return ("instruction", "input", "history", "conversations", "messages") if (
        "prompt" in view
    ) else ()  # fmt: skip


def _by_values(table: Table, columns: Mapping[str, str], error: RowError) -> DetectedRows:
    """Rows whose columns' names are not known: labelled texts, prompts with answers, or plain text.
    `columns` may say which column is the text or the label.
    """
    row = table.first[1]
    texts = [name for name in TEXTS if name in row] or _texts(table)
    texts = [columns["text"]] if "text" in columns else texts
    labels = [name for name in LABELS if name in row and name not in texts]
    labels += [name for name in row if name not in (*labels, *texts) and table.labels_of(name)]
    labels = [columns["label"]] if "label" in columns else labels
    for label in labels:
        if texts and table.labels_of(label):
            return _rows(table, {"text": texts[0], "label": label}, "labels")
    plain = {name.strip().lower(): name for name in reversed(row)}
    for prompt, completion in QUESTIONS:
        if prompt in plain and completion in plain:
            return _rows(table, {"prompt": plain[prompt], "completion": plain[completion]})
    column = columns.get("text", "text")
    if column in row and "label" not in columns:
        uses = {name: "text" if name == column else NOT_USED for name in table.filled}
        return _text(table.rows, uses, dict(table.filled))
    raise error


def _texts(table: Table) -> list[str]:
    """The columns of texts, the longest first."""
    row = table.first[1]
    found = [name for name, value in row.items() if isinstance(value, str)]
    free = [name for name in found if not table.labels_of(name)]
    return sorted(free, key=lambda name: -table.sizes[name])


def _text(rows: int, uses: dict[str, str], filled: dict[str, int]) -> DetectedRows:
    found = DetectedRows("text", rows, "", uses=uses, filled=filled)
    sentence = f"{counted(rows, 'row' if uses else 'document')} of plain text{_aside(found)}"
    return DetectedRows("text", rows, sentence, uses=uses, filled=filled)


def _labels(table: Table, roles: dict[str, str]) -> DetectedRows:
    label = roles["label"]
    counts = table.labels_of(label) or dict(table.counts.get(label, Counter()).most_common())
    if label in counts:
        raise UserError(
            f"{table.first[0].rpartition(':')[0]}: the column {label!r} holds {label!r} in "
            f"{counted(counts[label], 'row')}: the line of column names is missing, or stands twice"
        )
    return _described("labels", table, "labels", roles, counts)


WORDS = {
    "conversations": "conversations",
    "preferences": "preference pairs",
    "ratings": "rated answers",
    "labels": "labelled texts",
    "prompt_completion": "prompts with answers",
}


def _described(
    kind: Kind,
    table: Table,
    name: str,
    roles: dict[str, str],
    labels: dict[str, int] | None = None,
) -> DetectedRows:
    """The whole answer, its sentence last, which is made from the rest."""
    read_as = {column: known for known, column in roles.items()}
    uses = {column: read_as.get(column, NOT_USED) for column in table.filled}
    columns = {k: c for k, c in roles.items() if k != c and k in KNOWN}
    found = DetectedRows(
        kind, table.rows, "", name, columns, uses, dict(table.filled),
        roles.get("label") if kind == "labels" else None, labels or {}, roles.get("rating"),
    )  # fmt: skip
    named = ", ".join(f"{c} as {k}" if k != c else k for k, c in roles.items())
    listed = ", ".join(f"{label} {n:,}" for label, n in list(found.labels.items())[:10])
    more = f" and {len(found.labels) - 10} more" if len(found.labels) > 10 else ""
    labelled = f"; {counted(len(found.labels), 'label')}: {listed}{more}" if listed else ""
    sentence = f"{table.rows:,} {WORDS[kind]} ({named}){labelled}{_aside(found)}"
    return DetectedRows(**{**found.__dict__, "sentence": sentence})


def _aside(found: DetectedRows) -> str:
    unused = ", ".join(f"{name} ({n:,})" for name, n in found.unused.items())
    return f"; not used: {shorten(unused, 200)}" if unused else ""
