"""An order of N things by a seed alone: any stretch of it at once, in no memory to speak of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamaseek.data.hashing import mix

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
