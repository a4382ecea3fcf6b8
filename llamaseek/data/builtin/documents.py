"""The built-in pre-training sources: text of this Python installation, and generated text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle, islice
from random import Random

from llamaseek.data.builtin.corpus import SOURCES, document
from llamaseek.data.builtin.python_library import code_documents, web_documents

LONGEST = 2000  # characters: one long module must not crowd out a small mix


def builtin_documents(name: str, budget: float, seed: int) -> Iterator[str]:
    """Documents of one built-in source, about `budget` bytes of them, the same for a seed."""
    used = 0
    texts = _endless(name, seed)
    while used < budget:
        text = next(texts)
        used += len(text.encode())
        yield text


def _endless(name: str, seed: int) -> Iterator[str]:
    if name in MACHINE:
        return cycle(_short(name))
    rng = Random(f"{seed}/{name}")
    return (document(name, rng) for _ in iter(int, 1))


def _web() -> Iterator[str]:
    return (found.text for found in web_documents())


def _code() -> Iterator[str]:
    return (found.text for found in code_documents())


@cache
def _short(name: str) -> tuple[str, ...]:
    """The source's documents cut to at most LONGEST characters, in a shuffled, fixed order."""
    texts = MACHINE[name]()
    pieces = [t[i : i + LONGEST] for t in texts for i in range(0, min(len(t), 8000), LONGEST)]
    kept = list(islice((piece for piece in pieces if piece.strip()), 20_000))
    Random(0).shuffle(kept)
    return tuple(kept)


MACHINE: dict[str, Callable[[], Iterator[str]]] = {"web": _web, "code": _code}

NAMES = (*MACHINE, *SOURCES)
"""What `data.mix` may name without a corpus of its own."""
