"""The first rows of a file as they are trained on, and the lengths of all: `data inspect FILE`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.detect import DetectedRows
from llamaseek.data.documents import read_documents
from llamaseek.data.formats import RowReader
from llamaseek.data.rankings import preferences
from llamaseek.data.row_sources import read_rows
from llamaseek.data.rows import Span, conversation, stretches
from llamaseek.recipe.schema import DataRecipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.jobs.preview import shown_row

UNLIMITED = 1 << 40
"""Tokens a row: here none is too long."""

SHOWN = 2000
"""Characters of a text that are shown."""


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
        column = self.data.columns.get("text", "text")
        found = read_documents([source], None, column, self.data.encoding)
        for number, document in enumerate(found):
            if self.tokenizer is not None:
                self.lengths.append(len(self.tokenizer.encode(document.text)))
            if number < self.most:
                self.rows.append((document.metadata["place"], [Span(document.text[:SHOWN], True)]))

    def read_rows(self, source: str) -> None:
        """Every row in the way that a run would read it; those that it cannot are counted."""
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

        if self.found.kind != "preferences":
            example = conversation(place, row, tokenizer, UNLIMITED, reader)
            self.length = len(example.tokens)
            yield from stretches(example, tokenizer)
            return
        batch = preferences([(place, row)], tokenizer, UNLIMITED, "plain", reader)
        self.length = int(batch.tokens.shape[1])
        for document in shown_row(batch, 0, tokenizer).documents:
            yield from document
