"""Lines that come again and again: menus, cookie notices, footers (ccNet; Llama 3 §3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llamaseek.data.clean.dedup.stage import (
    SLICE,
    Collector,
    CorpusStage,
    Judge,
    Round,
    Shards,
    part_of,
)
from llamaseek.data.clean.hashing import Hashes, text_hash
from llamaseek.data.clean.stage import Reason
from llamaseek.data.clean.words import simplified
from llamaseek.data.documents import Document


class LineDedup(CorpusStage):
    """Removes lines seen more than `max_times` times in a bucket of documents.

    Lines count as one if they differ in case, numbers, accents and punctuation only. A document
    leaves if no words are left of it.
    """

    max_times: int = Field(default=6, ge=1)
    bucket: int = Field(default=30_000_000, ge=1)  # documents

    def collector(self, shards: Shards, shard: int) -> Collector:
        return LineCollector(shards, shard)

    def rounds(self, shards: Shards) -> Sequence[Round]:
        sizes = [np.load(shards.note("lines", n), mmap_mode="r").shape[0] for n in _range(shards)]
        slices = -(-sum(sizes) // SLICE) or 1
        buckets = -(-sum(shards.counts) // self.bucket) or 1
        count = partial(frequent, slices=slices, bucket=self.bucket, most=self.max_times)
        joined = partial(join, slices=slices)
        return Round(buckets * slices, count), Round(buckets, joined)

    def judge(self, shards: Shards, shard: int) -> Judge:
        offset = shards.offsets[shard]

        @cache
        def often(bucket: int) -> Hashes:
            return np.load(shards.note("often", bucket), mmap_mode="r")

        def judged(row: int, document: Document) -> Document | Reason:
            return self._without(often((offset + row) // self.bucket), document)

        return judged

    def _without(self, often: Hashes, document: Document) -> Document | Reason:
        lines = document.text.split("\n")
        hashes = line_hashes(lines)
        at = np.minimum(np.searchsorted(often, hashes), max(len(often) - 1, 0))
        drop = (often[at] == hashes) & (hashes != 0) if len(often) else np.zeros(len(lines), bool)
        if not drop.any():
            return document
        kept = [line for line, gone in zip(lines, drop, strict=True) if not gone]
        worded = np.count_nonzero(hashes)
        if worded == drop.sum():
            often_seen = f"all {worded} lines more than {self.max_times} times in their bucket"
            return Reason("lines seen", often_seen, "one seen less")
        marks = {"lines_removed": int(drop.sum())}
        return replace(
            document, text="\n".join(kept).strip("\n"), metadata=document.metadata | marks
        )


class LineCollector(Collector):
    """The hashes of all lines of a shard, sorted, and the row of the document each is in."""

    def __init__(self, shards: Shards, shard: int) -> None:
        self.shards, self.shard = shards, shard
        self.hashes: list[Hashes] = []
        self.rows: list[NDArray[np.int64]] = []

    def add(self, row: int, document: Document) -> None:
        found = line_hashes(document.text.split("\n"))
        found = found[found != 0]
        self.hashes.append(found)
        self.rows.append(np.full(len(found), row))

    def finish(self) -> None:
        hashes = np.concatenate([np.empty(0, np.uint64), *self.hashes])
        rows = np.concatenate([np.empty(0, np.int64), *self.rows])
        order = np.argsort(hashes, kind="stable")
        np.save(self.shards.note("lines", self.shard), hashes[order])
        np.save(self.shards.note("rows", self.shard), rows[order])


def line_hashes(lines: Sequence[str]) -> Hashes:
    """One hash a line; 0 for a line without words."""
    plain = [simplified(line) for line in lines]
    return np.array([text_hash(line) if line else 0 for line in plain], dtype=np.uint64)


def frequent(shards: Shards, task: int, slices: int, bucket: int, most: int) -> None:
    """The hashes in one slice of their range that one bucket has more than `most` times."""
    which, part = divmod(task, slices)
    found = [_in_bucket(shards, n, which, bucket, part, slices) for n in _range(shards)]
    hashes, counts = np.unique(np.concatenate(found), return_counts=True)
    np.save(shards.note("slice", task), hashes[counts > most])


def _in_bucket(
    shards: Shards, shard: int, which: int, bucket: int, part: int, slices: int
) -> Hashes:
    offset = shards.offsets[shard]
    low, high = which * bucket - offset, (which + 1) * bucket - offset  # in rows of this shard
    if high <= 0 or low >= shards.counts[shard]:
        return np.empty(0, np.uint64)
    hashes = np.load(shards.note("lines", shard), mmap_mode="r")
    cut = part_of(hashes, part, slices)
    rows = np.load(shards.note("rows", shard), mmap_mode="r")[cut]
    return np.array(hashes[cut][(rows >= low) & (rows < high)])


def join(shards: Shards, task: int, slices: int) -> None:
    """The slices of one bucket as one sorted file."""
    tasks = range(task * slices, (task + 1) * slices)
    parts = [np.load(shards.note("slice", number)) for number in tasks]
    np.save(shards.note("often", task), np.concatenate(parts))


def _range(shards: Shards) -> range:
    return range(len(shards.counts))
