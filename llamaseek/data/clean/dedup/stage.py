"""What a stage is that must see the whole corpus: it notes keys, decides, and is applied.

While a shard of documents is written, a `Collector` notes what the decision needs. `Round`s of
tasks then decide on files, a slice of the keys at a time, and `judge` reports the decision document
by document. Nothing depends on how many processes share the tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from llamaseek.data.clean.hashing import Hashes
from llamaseek.data.clean.stage import Reason
from llamaseek.data.documents import Document
from llamaseek.recipe.reading import Section

SLICE = 2_000_000
"""Keys that one task sorts in memory: about 100 MB."""


@dataclass(frozen=True)
class Shards:
    """The documents a stage decides on: a parquet file a shard, and a folder for its notes."""

    documents: Path
    notes: Path
    counts: tuple[int, ...]  # documents in each shard

    @property
    def offsets(self) -> list[int]:
        """The place of each shard's first document in the whole corpus."""
        return [0, *accumulate(self.counts)][:-1]

    def note(self, kind: str, number: int) -> Path:
        """Where the notes of one kind about one shard lie."""
        return self.notes / f"{kind}-{number:06d}.npy"


class Collector:
    """Notes what a stage needs of the documents of one shard."""

    @abstractmethod
    def add(self, row: int, document: Document) -> None:
        """The next document."""

    @abstractmethod
    def finish(self) -> None:
        """Write the notes."""


@dataclass(frozen=True)
class Round:
    """Tasks that may run at once; each says with its number which part it does."""

    tasks: int
    run: Callable[[Shards, int], None]


def part_of(keys: Hashes, part: int, parts: int) -> slice:
    """Where the keys of one of `parts` equal parts of their range lie among sorted keys."""
    edges = [(1 << 64) * edge // parts for edge in (part, part + 1) if edge < parts]
    first, *last = np.searchsorted(keys, np.array(edges, dtype=np.uint64))
    return slice(int(first), int(last[0]) if last else len(keys))


Judge = Callable[[int, Document], Document | Reason]


class CorpusStage(Section):
    """A step whose judgment on a document depends on all the others."""

    @abstractmethod
    def collector(self, shards: Shards, shard: int) -> Collector:
        """For one shard that is being written; `shards.counts` is not known yet."""

    @abstractmethod
    def rounds(self, shards: Shards) -> Sequence[Round]:
        """What to run between writing the documents and reading them again."""

    @abstractmethod
    def judge(self, shards: Shards, shard: int) -> Judge:
        """The decision on a shard's documents, by row."""
