"""JSON of any size in pieces: no answer, however long, holds the event loop while it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from fastapi import Response
from fastapi.responses import StreamingResponse

PIECE = 1 << 16
"""Characters of a piece that is sent, and of a text that is escaped at once."""
BATCH = 64
"""Items of a long list that are written at once."""
dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class LongList:
    """A list of any length whose items are made when they are written, which may be once."""

    items: Iterable[Any]


def json_pieces(value: Any) -> Iterator[str]:
    """The JSON of a value in pieces of at least `PIECE` characters; only the last is shorter."""
    held, size = [], 0
    for part in _parts(value):
        held.append(part)
        size += len(part)
        if size >= PIECE:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for number, (key, each) in enumerate(value.items()):
            yield f"{',' if number else '{'}{dumps(key)}:"
            yield from _parts(each)
        yield "}" if value else "{}"
    elif isinstance(value, LongList):
        yield from _batches(iter(value.items))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield "," if number else "["
            yield from _parts(each)
        yield "]" if value else "[]"
    elif isinstance(value, str) and len(value) > PIECE:
        slices = (value[at : at + PIECE] for at in range(0, len(value), PIECE))
        yield from chain('"', (dumps(each)[1:-1] for each in slices), '"')
    else:
        yield dumps(value)


def _batches(items: Iterator[Any]) -> Iterator[str]:
    start = "["
    while batch := list(islice(items, BATCH)):
        yield start + dumps(batch)[1:-1]
        start = ","
    yield "]" if start == "," else "[]"


def as_json(value: Any) -> Response:
    """A response with a value as JSON; what is longer than a piece is written in a thread."""
    pieces = json_pieces(value)
    first = next(pieces)
    if len(first) < PIECE:
        return Response(first, media_type="application/json")
    return StreamingResponse(chain((first,), pieces), media_type="application/json")
