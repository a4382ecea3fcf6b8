"""The layout of a step's tokens: positions in the model's row, and slots of the cache.

A step's chunks lie end to end in one row of N tokens. On a CPU attention wants rectangles, so
sequences of like sizes are padded together into groups. A GPU has kernels for chunks that lie end
to end, which need neither rectangles nor masks.

N tokens of the step, b sequences of a group, T most queries, S most keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamaseek.models.documents import Documents, documents_with

Ints = NDArray[np.int64]
FEW = 16  # tokens of a step that has kernels of its own
FINEST = 64  # keys; sequences shorter than this share a group


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences of similar sizes as one rectangle.

    `places` (b × T) are its queries in the step's row, None where they are the row itself;
    padding repeats a sequence's last query. `real` picks the queries that are no padding, None
    where all are. `blocks` (b × n) are block ids, or `run` the slots where they are one run.
    `hidden` (1, b, T, 1, S) marks keys that a query may not see, None where it sees all.
    `before` is the most keys that any sequence has in front of its first query.
    """

    sequences: int
    queries: int
    keys: int
    before: int
    places: Tensor | None
    real: Tensor | None
    blocks: Tensor | None
    run: slice | None
    hidden: Tensor | None


@dataclass(frozen=True)
class JoinedChunks:
    """Chunks that attend in one kernel, by the cumulative lengths of their queries and keys.

    `places` are their queries in the step's row, None where they are the row itself, and `slots`
    those of all their sequences' tokens up to the chunks' ends, one sequence behind the other.
    """

    places: Tensor | None
    slots: Tensor
    documents: Documents


@dataclass(frozen=True)
class StepLayout:
    """One step: `positions` and `slots` (N) of its tokens, and the groups they attend in.

    Tokens that are in no group, nor `joined`, attend one by one, over `lengths` tokens of their
    rows of `tables`. They are those at `alone` in the step's row, None where they are all.
    """

    positions: Tensor
    slots: Tensor
    ends: Ints  # (B) where each chunk ends in the row
    groups: list[AttentionGroup]
    tables: Tensor | None  # (N, blocks) of tokens' sequences, where they are few
    lengths: Tensor  # (N) tokens that each of them may see
    size: int  # tokens a block
    alone: Tensor | None = None
    joined: JoinedChunks | None = None


def lay_out(
    tables: Ints,
    starts: Ints,
    counts: Ints,
    size: int,
    device: torch.device | str = "cpu",
    apart: bool = False,
    join: bool = False,
) -> StepLayout:
    """tables (B, blocks of the longest), starts and counts (B) of the chunks → the layout.

    With `apart`, chunks of few tokens are in no group; with `join` the others are joined.
    """
    ends = counts.cumsum()
    first = ends - counts
    total = int(ends[-1])
    sequence, positions, slots = _tokens(tables, starts, counts, size)
    lengths = starts + counts
    few = FEW if apart else 0
    long = np.flatnonzero(counts > few)
    groups = []
    for places in like_sizes(counts[long], lengths[long]) if not join else ():
        members = long[places]
        whole = len(members) == len(counts)
        groups.append(_group(tables, starts, counts, first, members, whole, size, device))
    rows = np.flatnonzero(counts[sequence] <= few)
    joined = None
    if len(long) and join:
        queries = np.flatnonzero(counts[sequence] > few) if len(rows) else None
        joined = _joined(tables[long], starts[long], counts[long], queries, size, device)
    return StepLayout(
        positions=sent(positions, device),
        slots=sent(slots, device),
        ends=ends,
        groups=groups,
        tables=sent(tables[sequence[rows]], device) if len(rows) else None,
        lengths=sent(positions[rows] + 1, device),
        size=size,
        alone=sent(rows, device) if 0 < len(rows) < total else None,
        joined=joined,
    )


def _tokens(tables: Ints, starts: Ints, counts: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Of all tokens of chunks that lie end to end: their chunks, positions and slots."""
    sequence = np.repeat(np.arange(len(counts)), counts)
    first = counts.cumsum() - counts
    positions = np.arange(len(sequence)) + (starts - first)[sequence]
    block, offset = np.divmod(positions, size)
    return sequence, positions, tables[sequence, block] * size + offset


def _joined(
    tables: Ints,
    starts: Ints,
    counts: Ints,
    places: Ints | None,
    size: int,
    device: torch.device | str,
) -> JoinedChunks:
    lengths = starts + counts
    _, _, slots = _tokens(tables, np.zeros_like(lengths), lengths, size)
    return JoinedChunks(
        places=None if places is None else sent(places, device),
        slots=sent(slots, device),
        documents=documents_with(np.stack((counts, lengths)), device),
    )


def like_sizes(counts: Ints, lengths: Ints) -> list[Ints]:
    """Indices of the sequences, apart where queries or keys differ by more than a factor two."""
    if len(counts) < 2:
        return [np.zeros(1, np.int64)] * len(counts)
    keys = np.ceil(np.log2(np.maximum(lengths / FINEST, 1)))
    kinds = np.ceil(np.log2(counts)) * 64 + keys
    return [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]


def _group(
    tables: Ints,
    starts: Ints,
    counts: Ints,
    first: Ints,
    members: Ints,
    whole: bool,
    size: int,
    device: torch.device | str,
) -> AttentionGroup:
    start, count = starts[members], counts[members]
    queries, length = int(count.max()), int((start + count).max())
    blocks = tables[members, : -(-length // size)]
    run = _run(blocks, length, size) if len(members) == 1 else None
    keys = length if run else blocks.shape[1] * size
    even = bool((count == queries).all())
    ahead = np.minimum(np.arange(queries), count[:, None] - 1)  # (b, T)
    places = None if whole and even else sent((first[members, None] + ahead).ravel(), device)
    real = None if even else sent(np.flatnonzero(np.arange(queries) < count[:, None]), device)
    hidden = None
    if not run or queries > 1:
        last = sent(start[:, None] + ahead, device)
        hidden = torch.arange(keys, device=device) > last[None, :, :, None, None]
    return AttentionGroup(
        sequences=len(members),
        queries=queries,
        keys=keys,
        before=int(start.max()),
        places=places,
        real=real,
        blocks=None if run else sent(blocks.ravel(), device),
        run=run,
        hidden=hidden,
    )


def _run(blocks: Ints, length: int, size: int) -> slice | None:
    """The slots of one sequence where its blocks lie end to end, so that none need be moved."""
    first = int(blocks[0, 0])
    if blocks[0, -1] - first != blocks.shape[1] - 1 or (np.diff(blocks[0]) != 1).any():
        return None
    return slice(first * size, first * size + length)


def sent(numbers: Ints, device: torch.device | str) -> Tensor:
    """Whole numbers as a tensor on a device. Nothing waits for what the device computes."""
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(device, non_blocking=True)


def some_rows(hidden: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of hidden (N, D), in ascending order; itself where they are all."""
    if len(rows) == len(hidden):
        return hidden
    return hidden[sent(np.array(rows, np.int64), hidden.device)]
