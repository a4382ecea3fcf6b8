"""`data inspect FILE`: what a file of rows is taken for, and its first rows as they are learnt."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from llamaseek.recipe.reading import apply_override, validated
from llamaseek.recipe.schema import DataRecipe

if TYPE_CHECKING:
    from rich.console import Console

    from llamaseek.data.detect import DetectedRows
    from llamaseek.data.formats import RowReader
    from llamaseek.data.rows import Span
    from llamaseek.text.tokenizer import Tokenizer

RECIPES = (".yaml", ".yml")


def is_data(source: str) -> bool:
    """Whether this names a file, folder, glob or data set, and no recipe."""
    path = Path(source).expanduser()
    found = path.exists() or source.startswith("hf://") or glob.has_magic(source)
    return found and path.suffix not in RECIPES


def inspect_file(
    console: Console, source: str, overrides: list[str], rows: int, model: str | None
) -> None:
    """Print what the rows are, each column's use, their lengths, and the first of them.

    `overrides` are of the recipe's section `data`, as `data.columns={prompt: q}`. Lengths are
    counted and control tokens shown with the tokenizer of `model`.
    """
    from llamaseek.data.detect import detect
    from llamaseek.text.tokenizer import Tokenizer

    data = data_section(overrides)
    found = detect([source], data.columns, data.encoding)
    console.print(f"{source}: {found.sentence}", markup=False)
    if found.uses:
        console.print(columns_table(found))
    shown = ShownRows(found, data, Tokenizer.load(model) if model else None, rows)
    if found.kind == "text":
        shown.read_texts(source)
    else:
        shown.read_rows(source)
    shown.print(console)


def data_section(overrides: list[str]) -> DataRecipe:
    """The section `data` that overrides make; UserError for other keys."""
    plain: dict[str, Any] = {}
    for override in overrides:
        apply_override(plain, override)
    return validated(DataRecipe, plain.pop("data", {}) | plain, "data")


def columns_table(found: DetectedRows) -> Any:
    """Every column, what it is used as, and in how many rows it has a value."""
    from rich.table import Table

    table = Table("column", "used as", "rows")
    table.columns[2].justify = "right"
    for name, use in found.uses.items():
        style = "yellow" if name in found.unused else ""
        table.add_row(name, use, f"{found.filled[name]:,}", style=style)
    return table


@dataclass
class ShownRows:
    """The first rows as spans of text, and the lengths of all."""

    found: DetectedRows
    data: DataRecipe
    tokenizer: Tokenizer | None
    most: int
    rows: list[tuple[str, list[Span]]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    length: int = 0  # of the latest row, in tokens
    notes: list[str] = field(default_factory=list)

    def read_texts(self, source: str) -> None:
        """Documents, of which all but the first token has a loss."""
        from llamaseek.data.documents import read_documents
        from llamaseek.data.rows import Span

        for number, document in enumerate(read_documents([source])):
            if self.tokenizer is not None:
                self.lengths.append(len(self.tokenizer.encode(document.text)))
            if number < self.most:
                self.rows.append((document.metadata["place"], [Span(document.text[:2000], True)]))

    def read_rows(self, source: str) -> None:
        """Every row in the way that a run would read it; those that it cannot are counted."""
        from llamaseek.data.bad_rows import BadRows
        from llamaseek.data.formats import RowReader
        from llamaseek.data.row_sources import read_rows

        columns = {**self.found.columns, **self.data.columns}
        reader = RowReader(self.found.format, columns, self.data.ignore)
        bad = BadRows(skip=True)
        made = bad.usable(read_rows(source, self.data.encoding), self._maker(reader))
        for number, (place, spans, length) in enumerate(made):
            if length is not None:
                self.lengths.append(length)
            if number < self.most:
                self.rows.append((place, spans))
        bad.notes = reader.notes()
        self.notes = bad.summary()

    def _maker(self, reader: RowReader) -> Callable[..., tuple[str, list[Span], int | None]]:
        """What makes spans, and a length, of a row."""

        def make(place: str, row: dict[str, Any]) -> tuple[str, list[Span], int | None]:
            if self.tokenizer is None:
                return place, list(self._turns(place, row, reader)), None
            spans = list(self._spans(place, row, reader, self.tokenizer))
            return place, spans, self.length

        return make

    def _turns(self, place: str, row: dict[str, Any], reader: RowReader) -> Iterator[Span]:
        """Messages without any chat format."""
        from llamaseek.data.rows import Span

        if self.found.kind == "preferences":
            ranking = reader.ranking(place, row)
            parts = [ranking.prompt, *ranking.answers.values()]
        else:
            parts = [reader.conversation(place, row).messages]
        for number, messages in enumerate(parts):
            prompt = number == 0 and len(parts) > 1
            for message in messages:
                said = str(message.get("content") or message.get("tool_calls") or "")
                answer = message.get("role") == "assistant" and message.get("train", True)
                yield Span(f"{message.get('role')}: ", False)
                yield Span(f"{said}\n", answer and not prompt)

    def _spans(
        self, place: str, row: dict[str, Any], reader: RowReader, tokenizer: Tokenizer
    ) -> Iterator[Span]:
        """The row as the model reads it."""
        from llamaseek.data.rankings import preferences
        from llamaseek.data.rows import conversation, stretches
        from llamaseek.train.jobs.preview import shown_row

        if self.found.kind != "preferences":
            example = conversation(place, row, tokenizer, UNLIMITED, reader)
            self.length = len(example.tokens)
            yield from stretches(example, tokenizer)
            return
        batch = preferences([(place, row)], tokenizer, UNLIMITED, "plain", reader)
        self.length = int(batch.tokens.shape[1])
        for document in shown_row(batch, 0, tokenizer).documents:
            yield from document

    def print(self, console: Console) -> None:
        """The lengths, and the first rows; what is learnt is green."""
        from rich.text import Text

        if self.lengths:
            low, high = min(self.lengths), max(self.lengths)
            console.print(
                f"lengths in tokens: {low:,} to {high:,}, median {median(self.lengths):,.0f}, "
                f"{sum(self.lengths):,} in all"
            )
        for place, spans in self.rows:
            console.rule(Text(place), align="left", characters="─")
            text = Text()
            for span in spans:
                text.append(span.text, style="green" if span.in_loss else "dim")
            console.print(text)
        for line in self.notes:
            console.print(line, markup=False)
        console.print("Green: what has a loss. Dimmed: what the model only reads.", style="dim")


UNLIMITED = 1 << 40
"""Tokens a row: here none is too long."""
