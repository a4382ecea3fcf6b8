"""A tokenized corpus on disk: one file of tokens and an index of pieces, both memory-mapped.

A piece is a document, or where that is longer than a row a row's length of it. Pieces are what is
shuffled; a step reads only its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.unsignedinteger]


class Store:
    """Read side. `pieces` (N, 3) int64: start, stop, and whether the document ends there."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.tokens: Tokens = _mapped(folder / "tokens.bin", token_type(vocab_size))
        self.pieces: NDArray[np.int64] = _mapped(folder / "pieces.bin", np.dtype(np.int64))
        self.pieces = self.pieces.reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.pieces)


def _mapped(path: Path, kind: np.dtype) -> NDArray:  # type: ignore[type-arg]
    """A file as an array; an empty one cannot be mapped."""
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def token_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_store(
    folder: Path,
    documents: Iterable[list[int]],
    vocab_size: int,
    length: int,
    long: tuple[int, int] | None = None,
) -> None:
    """Write token lists as a store whose pieces have at most `length` tokens.

    `long` (tokens, times) lists the pieces of documents of at least that many tokens that many
    times: they are read more often in an epoch.
    """
    folder.mkdir(parents=True)
    kind, at = token_type(vocab_size), 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "pieces.bin").open("wb") as index:
        for ids in documents:
            np.array(ids, dtype=kind).tofile(tokens)
            starts = np.arange(0, len(ids), length)
            stops = np.minimum(starts + length, len(ids))
            pieces = np.stack([starts + at, stops + at, stops == len(ids)], axis=1)
            times = long[1] if long is not None and len(ids) >= long[0] else 1
            np.tile(pieces.astype(np.int64), (times, 1)).tofile(index)
            at += len(ids)
