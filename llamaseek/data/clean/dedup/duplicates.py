"""Documents that are one: a key in common makes two of them duplicates, and one is kept.

Keys are sorted shard by shard when they are made. A task then reads one slice of the key range
from all shards, so that its memory does not grow with the corpus.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

from llamaseek.data.clean.dedup.stage import (
    SLICE,
    Collector,
    CorpusStage,
    Judge,
    Round,
    Shards,
    part_of,
)
from llamaseek.data.clean.hashing import Hashes
from llamaseek.data.clean.stage import Reason
from llamaseek.data.documents import Document


class Clusters:
    """Grows by pairs (leaves, kept); a kept document that leaves elsewhere takes its own along."""

    def __init__(self) -> None:
        empty = np.empty(0, dtype=np.int64)
        self.members, self.roots, self.met = empty, empty, empty

    def add(self, pairs: Places) -> None:
        """Pairs (count, 2) of one band, in which a document leaves at most once."""
        if not len(pairs):
            return
        parts = [self.members, self.roots, pairs[:, 0], pairs[:, 1]]
        nodes, index = np.unique(np.concatenate(parts), return_inverse=True)
        members, roots, leaves, kept = np.split(index, np.cumsum([len(p) for p in parts])[:-1])
        met = np.zeros(len(nodes), dtype=np.int64)
        met[members] += self.met
        met[leaves] += 1
        order = np.lexsort((nodes, met > 0))  # those that never left come first
        rank = np.argsort(order)
        a, b = np.concatenate([members, leaves]), np.concatenate([roots, kept])
        labels = joined(rank[a], rank[b], len(nodes))
        self.members, self.met, self.roots = nodes, met, nodes[order[labels[rank]]]

    def result(self) -> tuple[Places, Places, Places]:
        """Removed documents (sorted), the kept one of each, and in how many bands they matched."""
        leaves = self.members != self.roots
        return self.members[leaves], self.roots[leaves], self.met[leaves]


def joined(a: NDArray[np.int64], b: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The least node that each node of a graph with edges (a, b) is connected to."""
    labels = np.arange(size)
    while True:
        least = np.minimum(labels[a], labels[b])
        before = labels.copy()
        np.minimum.at(labels, before[a], least)
        np.minimum.at(labels, before[b], least)
        while not np.array_equal(labels, labels[labels]):
            labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


Places = NDArray[np.int64]

BATCH = 1 << 19
"""Characters of documents whose keys are computed at once."""


@dataclass(frozen=True)
class Keys:
    """Keys of some documents: `keys` (documents, bands), `rows` (documents), which ones they are.

    Of duplicates the one with the least `rank` is kept, among equals the first.
    """

    keys: Hashes
    rows: Places
    rank: Places


class Duplicates(CorpusStage):
    """Keeps one of each group of documents that share a key in any band."""

    @property
    def band_count(self) -> int:
        """How many keys a document has."""
        return 1

    @abstractmethod
    def keys(self, documents: Sequence[Document]) -> Keys:
        """Keys of those documents that have any."""

    @abstractmethod
    def reason(self, kept: str, bands: int) -> Reason:
        """Why a document leaves for the one called `kept`; it met earlier ones in `bands` bands."""

    def collector(self, shards: Shards, shard: int) -> Collector:
        return KeyCollector(self, shards, shard)

    def rounds(self, shards: Shards) -> Sequence[Round]:
        slices = -(-sum(shards.counts) // SLICE) or 1
        decide = partial(settle, bands=self.band_count, slices=slices)
        return Round(self.band_count * slices, partial(group, slices=slices)), Round(1, decide)

    def judge(self, shards: Shards, shard: int) -> Judge:
        table = pq.read_table(shards.note("leaves", shard).with_suffix(".parquet")).to_pydict()
        found = zip(table["row"], table["kept"], table["bands"], strict=True)
        leaves = {row: (kept, bands) for row, kept, bands in found}

        def judged(row: int, document: Document) -> Document | Reason:
            return self.reason(*leaves[row]) if row in leaves else document

        return judged


class KeyCollector(Collector):
    """Gathers documents until a batch is worth computing."""

    def __init__(self, stage: Duplicates, shards: Shards, shard: int) -> None:
        self.stage, self.shards, self.shard = stage, shards, shard
        self.batch: list[Document] = []
        self.first = self.size = 0
        self.found: list[Keys] = []

    def add(self, row: int, document: Document) -> None:
        self.batch.append(document)
        self.size += len(document.text)
        if self.size >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if self.batch:
            part = self.stage.keys(self.batch)
            self.found.append(Keys(part.keys, part.rows + self.first, part.rank))
        self.first += len(self.batch)
        self.batch, self.size = [], 0

    def finish(self) -> None:
        """Three arrays: keys by band, each band sorted, then rows and ranks in the same order."""
        self._flush()
        bands = self.stage.band_count
        keys = np.concatenate([np.empty((0, bands), np.uint64), *(f.keys for f in self.found)])
        rows = np.concatenate([np.empty(0, np.int64), *(f.rows for f in self.found)])
        rank = np.concatenate([np.empty(0, np.int64), *(f.rank for f in self.found)])
        order = np.argsort(keys, axis=0, kind="stable").T
        np.save(self.shards.note("keys", self.shard), np.take_along_axis(keys.T, order, axis=1))
        np.save(self.shards.note("rows", self.shard), rows[order])
        np.save(self.shards.note("rank", self.shard), rank[order])


def group(shards: Shards, task: int, slices: int) -> None:
    """Notes which documents share a key in one slice of one band: (leaves, kept) pairs."""
    band, part = divmod(task, slices)
    found = [_slice(shards, shard, band, part, slices) for shard in range(len(shards.counts))]
    keys, places, rank = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((places, rank, keys))
    keys, places = keys[order], places[order]
    begins = np.ones(len(keys), dtype=bool)
    begins[1:] = keys[1:] != keys[:-1]
    first = places[begins][np.cumsum(begins) - 1] if len(keys) else places
    np.save(shards.note("pairs", task), np.stack([places, first], axis=1)[~begins])


def _slice(
    shards: Shards, shard: int, band: int, part: int, slices: int
) -> tuple[Hashes, Places, Places]:
    """Keys, places in the corpus, and ranks of a shard, for one part of the range of keys."""
    keys = np.load(shards.note("keys", shard), mmap_mode="r")[band]
    cut = part_of(keys, part, slices)
    rows = np.load(shards.note("rows", shard), mmap_mode="r")[band, cut]
    rank = np.load(shards.note("rank", shard), mmap_mode="r")[band, cut]
    return np.array(keys[cut]), rows + shards.offsets[shard], np.array(rank)


def settle(shards: Shards, task: int, bands: int, slices: int) -> None:
    """The removed documents of each shard, the kept ones, and in how many bands they matched."""
    clusters = Clusters()
    for band in range(bands):
        tasks = range(band * slices, (band + 1) * slices)
        clusters.add(np.concatenate([np.load(shards.note("pairs", n)) for n in tasks]))
    leaves, kept, met = clusters.result()
    names = _names(shards, kept)
    edges = np.searchsorted(leaves, [*shards.offsets, sum(shards.counts)])
    for shard, offset in enumerate(shards.offsets):
        cut = slice(edges[shard], edges[shard + 1])
        columns = {
            "row": leaves[cut] - offset,
            "kept": [names[int(place)] for place in kept[cut]],
            "bands": met[cut],
        }
        table = pa.table(columns, schema=LEAVES)
        pq.write_table(table, shards.note("leaves", shard).with_suffix(".parquet"))


LEAVES = pa.schema([("row", pa.int64()), ("kept", pa.string()), ("bands", pa.int64())])


def _names(shards: Shards, places: Places) -> dict[int, str]:
    """The ids of the documents at these places, each shard opened once at most."""
    wanted = np.unique(places)
    edges = np.searchsorted(wanted, [*shards.offsets, sum(shards.counts)])
    names: dict[int, str] = {}
    for shard, offset in enumerate(shards.offsets):
        here = wanted[edges[shard] : edges[shard + 1]]
        if len(here):
            column = pq.read_table(shards.documents / f"{shard:06d}.parquet", columns=["id"])["id"]
            ids = column.take(pa.array(here - offset)).to_pylist()
            names.update(zip(here.tolist(), ids, strict=True))
    return names
