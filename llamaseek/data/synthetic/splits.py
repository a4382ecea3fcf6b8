"""Training and held-out items, disjoint by construction, and draws that lean to one side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, Protocol, TypeVar

Split = Literal["train", "test"]
T = TypeVar("T")


class Keyed(Protocol):
    """Anything whose content is named by a key."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


def split_of(key: str, held_out: float = 0.1) -> Split:
    """The split an item belongs to, from its content alone, whatever the seed."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") < held_out * 2**32 else "train"


def draw(rng: Random, make: Callable[[Random], K], split: Split, held_out: float = 0.1) -> K:
    """An item of the split: drawn again until its key falls there."""
    while True:
        item = make(rng)
        if split_of(item.key, held_out) == split:
            return item


def leaning(table: Sequence[T], after: int) -> list[float]:
    """Weights that halve by rank, the ranking turned by `after` (the preceding choice's index).

    A greedy continuation is thereby well defined in each context; a floor keeps tails alive.
    """
    size = len(table)
    return [0.5 ** ((i - after) % size) + 0.03 for i in range(size)]


def lean(rng: Random, table: Sequence[T], after: int) -> int:
    """The index of a leaning draw."""
    return rng.choices(range(len(table)), leaning(table, after))[0]
