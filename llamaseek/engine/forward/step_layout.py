"""The layout of a step's tokens: positions in the model's row, and slots of the cache.

A step's chunks lie end to end in one row of N tokens. On a CPU attention wants rectangles, so
sequences of like sizes are padded together into groups. A GPU has kernels for chunks that lie end
to end, which need neither rectangles nor masks.

N tokens of the step in B chunks, b sequences of a group, T most queries, S most keys, D width,
R rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import add

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamaseek.models.documents import Documents, documents_with

Ints = NDArray[np.int64]
FEW = 16  # tokens of a step that has kernels of its own
FINEST = 64  # keys; sequences shorter than this share a group


@dataclass(frozen=True)
class Inputs:
    """What a forward runs on: tokens (N) of chunks, each with its start and count (B).

    The blocks of their sequences stand in `rows` (B) of `blocks` (sequences, most), which change
    with the next step. Plain numbers, not tensors: after all weights were read, code is no longer
    in the processor's caches, and each operator on a few numbers takes 30 to 100 µs.
    """

    blocks: Ints
    rows: list[int]
    starts: list[int]
    counts: list[int]
    tokens: list[int]

    @property
    def longest(self) -> int:
        """The most tokens that one of the sequences has by now."""
        return max(map(add, self.starts, self.counts), default=1)

    def tables(self, size: int) -> Ints:
        """A copy of the blocks that hold `size` tokens each, as many as the longest has: (B, …)."""
        found: Ints = self.blocks[self.rows, : -(-self.longest // size)]
        return found

    def cut(self, size: int) -> Inputs:
        """The same with blocks of its own."""
        tables = self.tables(size)
        return replace(self, blocks=tables, rows=list(range(len(tables))))

    def padded(self, more: int, block: int, size: int) -> Inputs:
        """With chunks of one token more, which stand at the start of `block`."""
        own = self.tables(size)
        spare = np.full((more, own.shape[1]), block, np.int64)
        blocks = np.concatenate((own, spare))
        zeros, ones = [0] * more, [1] * more
        rows = list(range(len(blocks)))
        starts, counts = self.starts + zeros, self.counts + ones
        return Inputs(blocks, rows, starts, counts, self.tokens + zeros)


@dataclass(frozen=True)
class StepResult:
    """Hidden states (N, D) of a step, and logits (R, V) of the rows that were wanted.

    `best` (R), where it is there, are the first of the likeliest tokens of each, and `most` (R)
    their logits.
    """

    hidden: Tensor
    logits: Tensor
    best: list[int] | None = None
    most: list[float] | None = None


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
    sequence, positions, slots = _tokens(tables, starts, counts, size)
    few = counts <= (FEW if apart else 0)
    rows = None if few.all() else np.flatnonzero(few[sequence])
    some = slice(None) if rows is None else rows
    groups, joined = [], None
    if rows is not None and join:
        joined = _joined(tables, starts, counts, ~few, size, device)
    elif rows is not None:
        groups = _groups(tables, starts, counts, ~few, size, device)
    return StepLayout(
        positions=sent(positions, device),
        slots=sent(slots, device),
        groups=groups,
        tables=sent(tables[sequence[some]], device) if rows is None or len(rows) else None,
        lengths=sent(positions[some] + 1, device),
        size=size,
        alone=sent(rows, device) if rows is not None and len(rows) else None,
        joined=joined,
    )


def _tokens(tables: Ints, starts: Ints, counts: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Of all tokens of chunks that lie end to end: their chunks, positions and slots."""
    ends = counts.cumsum()
    if ends[-1] == len(counts):  # a token each, as in most steps
        sequence, positions = ends - 1, starts
    else:
        sequence = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(ends[-1]) + (starts - ends + counts)[sequence]
    return sequence, positions, tables[sequence, positions // size] * size + positions % size


def _joined(
    tables: Ints,
    starts: Ints,
    counts: Ints,
    long: NDArray[np.bool_],
    size: int,
    device: torch.device | str,
) -> JoinedChunks:
    """The chunks that are `long` (B)."""
    queries, lengths = counts[long], (starts + counts)[long]
    _, _, slots = _tokens(tables[long], np.zeros_like(lengths), lengths, size)
    places = None if long.all() else np.flatnonzero(np.repeat(long, counts))
    return JoinedChunks(
        places=None if places is None else sent(places, device),
        slots=sent(slots, device),
        documents=documents_with(np.stack((queries, lengths)), device),
    )


def _groups(
    tables: Ints,
    starts: Ints,
    counts: Ints,
    grouped: NDArray[np.bool_],
    size: int,
    device: torch.device | str,
) -> list[AttentionGroup]:
    """The groups of the sequences that are `grouped` (B)."""
    members, first = np.flatnonzero(grouped), counts.cumsum() - counts
    lengths = starts + counts
    groups = []
    for places in like_sizes(counts[members], lengths[members]):
        some = members[places]
        whole = len(some) == len(counts)
        groups.append(_group(tables, starts, counts, first, some, whole, size, device))
    return groups


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
