"""Hugging Face data sets, from the hub or a local folder, streamed: `hf://NAME?split=train`.

`config` picks a configuration, `text` the column of the text, `revision` a commit. A local folder,
as in `hf:///data/pages`, holds files that the library knows or what `save_to_disk` wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from llamaseek.data.bad_rows import BadRows, Row
from llamaseek.data.documents import Document, row_document
from llamaseek.data.tables import without_nulls
from llamaseek.errors import UserError, shorten, unknown_name

SCHEME = "hf://"
OPTIONS = ("split", "config", "text", "revision")


@dataclass(frozen=True)
class HubSource:
    """One split of a data set."""

    name: str
    split: str = "train"
    config: str | None = None
    text: str = "text"
    revision: str | None = None


def parse_hub(source: str) -> HubSource:
    """Raises UserError for an option that does not exist."""
    parts = urlsplit(source)
    options = dict(parse_qsl(parts.query))
    for option in options:
        if option not in OPTIONS:
            raise unknown_name(f"{source}: option", option, list(OPTIONS))
    return HubSource((parts.netloc + parts.path).rstrip("/"), **options)


def hub_shards(source: str) -> int:
    """How many parts of a data set can be read apart from each other."""
    return int(getattr(_stream(parse_hub(source)), "num_shards", 1))


def hub_rows(source: str) -> Iterator[Row]:
    """All rows of a data set, each with its place `source:row`; see `without_nulls`."""
    for place, row in _rows(parse_hub(source), source, 0, 1):
        yield place, {name: without_nulls(value) for name, value in row.items()}


def read_hub(
    source: str, shard: int, shards: int, bad: BadRows | None = None
) -> Iterator[Document]:
    """The documents of one part, in the data set's order; rows are named `source#shard:row`.

    Rows without a text are an error, or with `bad.skip` counted.
    """
    wanted = parse_hub(source)
    rows = _rows(wanted, f"{source}#{shard}", shard, shards)
    return (bad or BadRows()).usable(rows, partial(row_document, column=wanted.text))


def _rows(wanted: HubSource, name: str, shard: int, shards: int) -> Iterator[Row]:
    rows = _stream(wanted)
    if shards > 1:
        rows = rows.shard(num_shards=shards, index=shard)
    for number, row in enumerate(rows):
        yield f"{name}:{number}", row


def _stream(source: HubSource) -> Any:
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError:
        raise UserError("hf:// sources need datasets: pip install 'llamaseek[data]'") from None
    folder = Path(source.name)
    try:
        if (folder / "state.json").is_file():
            return load_from_disk(str(folder)).to_iterable_dataset()
        if (folder / "dataset_dict.json").is_file():
            return load_from_disk(str(folder))[source.split].to_iterable_dataset()
        config, revision = source.config, source.revision
        return load_dataset(
            source.name, config, split=source.split, revision=revision, streaming=True
        )
    except Exception as error:  # the library raises what its many backends do
        name = f"{SCHEME}{source.name}"
        raise UserError(f"{name}: cannot be read: {shorten(str(error))}") from error
