"""Near duplicates, by the bands of their MinHash signatures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llamaseek.data.clean.dedup.duplicates import Duplicates, Keys
from llamaseek.data.clean.hashing import STEP, Hashes, mix, ngram_hashes
from llamaseek.data.clean.stage import Reason
from llamaseek.data.clean.words import simplified
from llamaseek.data.documents import Document

Signature = NDArray[np.uint32]


def signatures(texts: Sequence[str], n: int, size: int, seed: int) -> Signature:
    """(texts, size) uint32: for each of `size` permutations, the least of a text's n-grams.

    Texts are simplified and have at least n words. A permutation of the 32-bit numbers is
    x → (a·x + b) mod 2^32 with odd a.
    """
    hashes, starts = ngram_hashes(texts, n)
    shingles = (hashes >> np.uint64(32)).astype(np.uint32)
    found = np.empty((size, len(texts)), dtype=np.uint32)
    moved = np.empty_like(shingles)
    for row, (factor, offset) in enumerate(_permutations(size, seed)):
        np.multiply(shingles, factor, out=moved)
        np.add(moved, offset, out=moved)
        np.minimum.reduceat(moved, starts, out=found[row])
    return found.T


def band_keys(found: Signature, bands: int) -> Hashes:
    """(texts, bands) uint64: one number for all hashes of a band together."""
    rows = found.shape[1] // bands
    parts = found.reshape(len(found), bands, rows).astype(np.uint64)
    powers = np.array([pow(STEP, place, 1 << 64) for place in range(rows)], dtype=np.uint64)
    return mix((parts * powers).sum(axis=2, dtype=np.uint64))


def minhash_keys(
    texts: Sequence[str], n: int, bands: int, rows: int, seed: int
) -> tuple[Hashes, NDArray[np.int64]]:
    """Band keys of the texts that have at least n words, and which texts those are."""
    plain = [simplified(text) for text in texts]
    long = [place for place, text in enumerate(plain) if text.count(" ") >= n - 1 and text]
    if not long:
        return np.empty((0, bands), dtype=np.uint64), np.empty(0, dtype=np.int64)
    found = signatures([plain[place] for place in long], n, bands * rows, seed)
    return band_keys(found, bands), np.array(long, dtype=np.int64)


@lru_cache(maxsize=4)
def _permutations(size: int, seed: int) -> list[tuple[np.uint32, np.uint32]]:
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, 1 << 32, (size, 2), np.uint32)
    return [(factor | np.uint32(1), offset) for factor, offset in drawn]


class MinHashDedup(Duplicates):
    """Keeps the first document of each cluster; one of fewer than n words has no near duplicate."""

    n: int = Field(default=5, ge=1)  # words a shingle
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1)  # hashes a band
    seed: int = Field(default=1, ge=0)

    @property
    def band_count(self) -> int:
        return self.bands

    def keys(self, documents: Sequence[Document]) -> Keys:
        texts = [document.text for document in documents]
        found, rows = minhash_keys(texts, self.n, self.bands, self.rows, self.seed)
        return Keys(found, rows, np.zeros_like(rows))

    def reason(self, kept: str, bands: int) -> Reason:
        met = f"{bands} of {self.bands} bands with earlier ones, first {kept}"
        return Reason("near duplicate", met, "no band in common")
