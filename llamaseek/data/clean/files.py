"""The files of a cleaning run: documents as parquet, and the removed with their reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from llamaseek.data.clean.stage import Reason
from llamaseek.data.clean.tally import EXCERPT
from llamaseek.data.documents import Document

DOCUMENTS = pa.schema([("text", pa.string()), ("id", pa.string()), ("metadata", pa.string())])
REMOVED = pa.schema([(name, pa.string()) for name in ("id", "source", "stage", "reason", "text")])
GROUP = 1 << 22  # characters of text in a row group


class ParquetFile:
    """A parquet file written row by row, a few megabytes in memory at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []
        self.size = 0

    def __enter__(self) -> ParquetFile:
        return self

    def add(self, row: dict[str, Any]) -> None:
        """The next row."""
        self.rows.append(row)
        self.size += len(row["text"]) + 200
        if self.size >= GROUP:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.size = [], 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
        self.writer.close()


def document_row(document: Document) -> dict[str, Any]:
    """A document as a row; metadata is JSON, so that rows may differ in it."""
    metadata = json.dumps(document.metadata, ensure_ascii=False, default=str)
    return {"text": document.text, "id": document.id, "metadata": metadata}


def removed_row(stage: str, reason: Reason, document: Document) -> dict[str, Any]:
    """A removed document: who, from where, why, and how it began."""
    return {
        "id": document.id,
        "source": str(document.metadata.get("source", "")),
        "stage": stage,
        "reason": str(reason),
        "text": document.text[:EXCERPT],
    }


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a few at a time in memory."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def read_cleaned(path: Path) -> Iterator[Document]:
    """The documents of a file that `document_row` made."""
    for row in read_table(path):
        yield Document(row["text"], row["id"], json.loads(row["metadata"]))
