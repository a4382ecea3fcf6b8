"""64-bit hashes of words, n-grams and lines, many texts at once in NumPy.

A word's hash is the polynomial of its bytes modulo 2^64, read off a running sum over all texts:
no step is taken word by word. Every machine gets the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
STEP = 0xD1B54A32D192ED03
MASK = (1 << 64) - 1


def word_hashes(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all words of all texts, and how many words each text has.

    Texts are words with single spaces between them, none empty.
    """
    joined = np.frombuffer(" ".join(texts).encode(), dtype=np.uint8)
    spaces = np.flatnonzero(joined == ord(" "))
    starts = np.concatenate([[0], spaces + 1])
    ends = np.concatenate([spaces, [len(joined)]])
    powers, inverses = _powers(1 << max(len(joined), 1 << 16).bit_length())
    sums = np.zeros(len(joined) + 1, dtype=np.uint64)
    np.cumsum((joined.astype(np.uint64) + np.uint64(1)) * powers[: len(joined)], out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * inverses[starts]
    counts = np.array([text.count(" ") + 1 for text in texts], dtype=np.int64)
    return mix(hashes), counts


def ngram_hashes(texts: Sequence[str], n: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all n-grams of words in order, and where each text's begin.

    Every text has at least n words.
    """
    hashes, counts = word_hashes(texts)
    total = len(hashes) - n + 1
    sums = np.zeros(total, dtype=np.uint64)
    for place in range(n):
        sums += hashes[place : place + total] * np.uint64(pow(STEP, place, 1 << 64))
    ends = np.cumsum(counts)
    inside = np.ones(total, dtype=bool)
    for back in range(1, n):  # n-grams that reach into the next text
        inside[ends[:-1] - back] = False
    starts = np.concatenate([[0], np.cumsum(counts - n + 1)[:-1]])
    return mix(sums[inside]), starts


def mix(hashes: Hashes) -> Hashes:
    """Every bit of the input in every bit of the output (the finalizer of SplitMix64)."""
    mixed = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def text_hash(text: str) -> int:
    """One text as a whole. Among 10^9 texts two different ones meet with probability 0.03."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=2)
def _powers(length: int) -> tuple[Hashes, Hashes]:
    """BASE^i and BASE^-i for i below `length`."""
    inverse = pow(BASE, -1, 1 << 64)
    return _geometric(BASE, length), _geometric(inverse, length)


def _geometric(factor: int, length: int) -> Hashes:
    powers = np.full(length, factor, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
