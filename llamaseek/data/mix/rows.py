"""Training rows drawn from several token stores at once, a function of seed and step.

B rows, T time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.data.clean.hashing import mix
from llamaseek.data.mix.encode import TokenStore
from llamaseek.data.mix.schedule import Position, Schedule
from llamaseek.data.source import Source, SourceState

ROUNDS = 4  # of a Feistel network; enough to be indistinguishable (Luby and Rackoff 1988)


def shuffled(places: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Where `places` of a shuffled 0 … size - 1 come from. A permutation for every seed.

    A Feistel network permutes the numbers below the next power of four; what falls outside of
    `size` is put through it again until it falls inside (cycle walking).
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        found[outside] = _feistel(found[outside], half, seed)
        outside = found >= size
    return found.astype(np.int64)


def _feistel(numbers: NDArray[np.uint64], half: int, seed: int) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> bits, numbers & mask
    for turn in range(ROUNDS):
        key = np.uint64((seed * ROUNDS + turn + 1) * 0x9E3779B97F4A7C15 % (1 << 64))
        left, right = right, left ^ (mix(right + key) & mask)
    return (left << bits) | right


AHEAD = 4096  # pieces of the shuffled order that are looked up at once


class Segment(NamedTuple):
    """Tokens `start` to `stop` of a store; `ends` if a document's last token is among them."""

    source: str
    start: int
    stop: int
    ends: bool


class MixRows(Source):
    """Rows of `length` tokens, each filled with pieces of the source furthest behind its share.

    Every epoch of a source is another shuffle of its pieces. All ranks see one stream: a rank
    plans every row of a step, from numbers alone, and reads the tokens of its own.
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        schedule: Schedule,
        length: int,
        isolate: bool = True,
        seed: int = 0,
    ) -> None:
        self.stores, self.schedule = stores, schedule
        self._length, self.isolate, self.seed = length, isolate, seed
        self._before = self._at = Position()
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}

    @property
    def length(self) -> int:
        """Tokens a row."""
        return self._length

    @property
    def rows(self) -> int | None:
        """Rows of one epoch, where there is one source; a mix has no epochs of its own."""
        if len(self.stores) != 1:
            return None
        (store,) = self.stores.values()
        return -(-int((store.pieces[:, 1] - store.pieces[:, 0]).sum()) // self.length)

    def step(self, step: int, rows: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The rows of one training step, or of the `rank`-th of `ranks` equal parts of it.

        Steps are meant to be read in order; any other one is planned from where it can be.
        """
        first = step * rows
        self._seek(first)
        self._before = self._at.copy()
        planned = [self._plan() for _ in range(rows)]
        part = range(rows * rank // ranks, rows * (rank + 1) // ranks)
        return self._read([planned[row] for row in part])

    def state(self) -> SourceState:
        """Where the next step begins."""
        return SourceState(position=asdict(self._at))

    def restore(self, state: SourceState) -> None:
        """Continue from what `state` returned."""
        self._at = self._before = Position(**state.position)

    def shares(self) -> dict[str, dict[str, float]]:
        """Of each source so far: tokens, its share of them, the share that was asked for."""
        at = self._at
        taken, asked = max(sum(at.taken.values()), 1), sum(at.asked.values()) or 1.0
        return {
            name: {
                "tokens": at.taken.get(name, 0),
                "share": at.taken.get(name, 0) / taken,
                "asked": at.asked.get(name, 0.0) / asked,
            }
            for name in self.stores
        }

    def _seek(self, row: int) -> None:
        if row == self._before.row:
            self._at = self._before.copy()
        elif row < self._at.row:
            self._at = Position()
        while self._at.row < row:
            self._plan()

    def _plan(self) -> list[Segment]:
        """The segments of the next row."""
        at, found, room = self._at, [], self.length
        self.schedule.begin_row(at, self.length)
        while room:
            name = self.schedule.pick(at)
            start, stop, ends = self._piece(name, at.piece.get(name, 0))
            start += at.offset.get(name, 0)
            count = int(min(room, stop - start, self.schedule.room(name, at)))
            whole = start + count == stop
            found.append(Segment(name, start, start + count, bool(ends) and whole))
            self.schedule.take(at, name, count)
            at.piece[name] = at.piece.get(name, 0) + whole
            at.offset[name] = 0 if whole else at.offset.get(name, 0) + count
            room -= count
        at.row += 1
        return found

    def _piece(self, name: str, number: int) -> tuple[int, int, int]:
        """Start, stop and end of a source's piece by its number over all epochs."""
        store = self.stores[name]
        block = number // AHEAD
        if self._orders.get(name, (-1, None))[0] != block:
            numbers = np.arange(block * AHEAD, (block + 1) * AHEAD)
            self._orders[name] = block, self._order(name, numbers)
        start, stop, ends = store.pieces[self._orders[name][1][number % AHEAD]].tolist()
        return start, stop, ends

    def _order(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which pieces these are: places in the shuffles of their epochs."""
        size = len(self.stores[name])
        epochs, places = np.divmod(numbers, size)
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = shuffled(places[here], size, self.seed * 1_000_003 + int(epoch))
        return found

    def _read(self, rows: list[list[Segment]]) -> Batch:
        shape = len(rows), self.length
        tokens, targets = np.empty(shape, np.int64), np.empty(shape, np.int64)
        positions = np.empty(shape, np.int64)
        for row, segments in enumerate(rows):
            at = 0
            for source, start, stop, ends in segments:
                place = slice(at, at + stop - start)
                stored = self.stores[source].tokens
                tokens[row, place] = stored[start:stop]
                targets[row, place] = IGNORE
                following = stored[start + 1 : stop + (not ends)]
                targets[row, at : at + len(following)] = following
                positions[row, place] = np.arange(stop - start)
                at = place.stop
        if not self.isolate:  # the row is one document, whatever it is made of
            targets[:, :-1] = tokens[:, 1:]
            positions[:] = np.arange(self.length)
        found = [torch.from_numpy(array) for array in (tokens, positions, targets)]
        return Batch(found[0], found[1], found[2])
