"""The chats: lengths and moments of arrival from fixed seeds, the same for every server."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

CHATS = 64


@dataclass(frozen=True)
class Shape:
    """A model's sizes, how long its chats are, and when a rate counts as sustained.

    Without sizes it is a folder that `--model` names.
    """

    sizes: dict[str, int]
    prompt: tuple[int, int]  # tokens, from and to
    answer: tuple[int, int]
    rate: float  # arrivals a second of the Poisson stream
    patience: float  # seconds that the slowest first token may take at a rate that is sustained
    repeats: int
    words: int = 100_000  # of the vocabulary, from which prompts are drawn


SHAPES = {
    "tiny": Shape(
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
        },
        prompt=(16, 256),
        answer=(16, 128),
        rate=5.0,
        patience=1.0,
        repeats=5,
    ),
    "smollm2": Shape(
        {},
        prompt=(16, 256),
        answer=(16, 64),
        rate=1.5,
        patience=5.0,
        repeats=3,
        words=49_000,
    ),
    "1b": Shape(
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
        },
        prompt=(16, 48),
        answer=(4, 24),
        rate=1.0,
        patience=20.0,
        repeats=1,
    ),
}


@dataclass(frozen=True)
class Chat:
    """Token ids to answer, and how many tokens the answer has."""

    prompt: list[int]
    answer: int


def chats(shape: Shape, run: int, count: int = CHATS) -> list[Chat]:
    """Lengths that are every run's; ids of plain words of the vocabulary that are this run's own,
    so that no cache of prompts knows them from the run before."""
    lengths, words = Random(0), Random(f"run {run}")
    found = []
    for _ in range(count):
        prompt = lengths.randint(*shape.prompt)
        ids = [words.randrange(1000, shape.words) for _ in range(prompt)]
        found.append(Chat(ids, lengths.randint(*shape.answer)))
    return found


def arrivals(rate: float, count: int = CHATS) -> list[float]:
    """Moments of a Poisson stream, in seconds."""
    rng, now, found = Random(1), 0.0, []
    for _ in range(count):
        found.append(now)
        now += rng.expovariate(rate)
    return found


@dataclass(frozen=True)
class Timing:
    """One chat: seconds from its arrival to its first and to its last token, and of the latter
    since the whole run began."""

    first: float
    last: float
    end: float


def quantile(values: list[float], share: float) -> float:
    """The smallest value that is at least as large as this share of them."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
