"""The built-in pre-training mix: text of this Python installation, and generated text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from random import Random

from llamaseek.data.machine import code_documents, web_documents
from llamaseek.data.synthetic.corpus import SOURCES, document
from llamaseek.errors import bad_value, unknown_name

LONGEST = 2000  # characters: one long module must not crowd out a small mix


def mixed_documents(mix: dict[str, float], budget: int, seed: int) -> list[str]:
    """Documents of about `budget` bytes in all, each source at its share of `mix`, shuffled."""
    names = [*MACHINE, *SOURCES]
    for name, weight in mix.items():
        if name not in names:
            raise unknown_name("data.mix source", name, names)
        if weight < 0:
            raise bad_value(f"data.mix.{name}", weight, "a number of at least 0")
    total = sum(mix.values())
    documents: list[str] = []
    for name, weight in mix.items():
        share = budget * weight / total if total else 0
        documents.extend(_take(_source(name, seed), share))
    Random(seed).shuffle(documents)
    return documents


def _take(texts: Iterator[str], budget: float) -> Iterator[str]:
    used = 0
    while used < budget:
        text = next(texts)
        used += len(text.encode())
        yield text


def _source(name: str, seed: int) -> Iterator[str]:
    if name in MACHINE:
        return cycle(_short(MACHINE[name]))
    rng = Random(f"{seed}/{name}")
    return (document(name, rng) for _ in iter(int, 1))


def _web() -> Iterator[str]:
    return (found.text for found in web_documents())


def _code() -> Iterator[str]:
    return (found.text for found in code_documents())


def _short(texts: Callable[[], Iterator[str]]) -> list[str]:
    """The source's documents cut to at most LONGEST characters, in a shuffled, fixed order."""
    pieces = [t[i : i + LONGEST] for t in texts() for i in range(0, min(len(t), 8000), LONGEST)]
    kept = list(islice((piece for piece in pieces if piece.strip()), 20_000))
    Random(0).shuffle(kept)
    return kept


MACHINE: dict[str, Callable[[], Iterator[str]]] = {"web": _web, "code": _code}
