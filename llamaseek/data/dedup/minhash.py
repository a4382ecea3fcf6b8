"""MinHash signatures and their bands (Broder 1997; Leskovec, Rajaraman, Ullman, chapter 3).

Llama 3 removes near duplicates globally with MinHash (§3.1.1); n = 5, 14 bands of 8 are FineWeb's
settings. Two documents with Jaccard similarity s share a band with probability 1 - (1 - s^8)^14:
0.924 at 0.8, 0.988 at 0.85.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llamaseek.data.hashing import STEP, Hashes, mix, ngram_hashes
from llamaseek.data.words import simplified

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


def keys(
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
