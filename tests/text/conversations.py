"""Random conversations, by hypothesis.

Messages come whole from pools, because ten thousand conversations that hypothesis makes letter by
letter take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from tests.text.texts import random_text

Message = dict[str, Any]
Maker = Callable[[Random], Any]

ten_thousand = settings(max_examples=10_000, derandomize=True, deadline=None, database=None)
hundreds = settings(max_examples=400, derandomize=True, deadline=None, database=None)

NAMES = ("get_weather", "add", "f", "look_up", "spotify_trending_songs", "x_1")
VALUES = (True, False, None, 0, -7, 0.5, [], ["a", 1], [None], "", 'a "quoted" word', "1\n2")


def text(rng: Random) -> str:
    return random_text(rng, 6)


def clean(rng: Random) -> str:
    """Without names of control tokens: for references that would take them for tokens."""
    return random_text(rng, 6, spelled=False)


def simple(rng: Random) -> str:
    """A few letters and blanks."""
    return "".join(rng.choice("abc déł日") for _ in range(rng.randrange(8)))


def anything(rng: Random) -> Any:
    """A value of JSON."""
    return rng.choice(VALUES) if rng.random() < 0.5 else text(rng)


def scalar(rng: Random) -> Any:
    """A value that a reference without escapes can write."""
    return rng.choice((True, False, None, 0, -7, 0.5, simple(rng), simple(rng)))


def arguments(rng: Random, value: Maker = anything) -> dict[str, Any]:
    return {key: value(rng) for key in rng.sample(("a", "city", "n_1", "query"), rng.randrange(4))}


def call(rng: Random, value: Maker = anything) -> Message:
    function = {"name": rng.choice(NAMES), "arguments": arguments(rng, value)}
    return {"type": "function", "function": function}


def turn(role: str, content: Maker = text) -> Maker:
    return lambda rng: {"role": role, "content": content(rng)}


def calling(content: Maker = lambda rng: "", most: int = 1, value: Maker = anything) -> Maker:
    """An assistant's message with calls, one by default."""
    return lambda rng: {
        "role": "assistant",
        "content": content(rng),
        "tool_calls": [call(rng, value) for _ in range(rng.randint(1, most))],
    }


def definition(rng: Random) -> Message:
    parameters = {"type": "object", "properties": {key: {} for key in arguments(rng)}}
    function = {"name": rng.choice(NAMES), "description": clean(rng), "parameters": parameters}
    return {"type": "function", "function": function}


def pool(*makers: Maker, count: int = 4_000, seed: int = 0) -> st.SearchStrategy[Any]:
    """One of `count` things, made by the makers in turn."""
    rng = Random(seed)
    return st.sampled_from([makers[n % len(makers)](rng) for n in range(count)])


def conversation(*makers: Maker) -> st.SearchStrategy[list[Message]]:
    """One to five messages of a pool; hypothesis draws one number, whose digits choose them."""
    messages = [makers[n % len(makers)](Random(n)) for n in range(4_001)]
    return st.integers(0, 2**64 - 1).map(lambda drawn: _chosen(drawn, messages))


def _chosen(drawn: int, messages: list[Message]) -> list[Message]:
    spread = drawn * 0x9E3779B97F4A7C15 % 2**64  # hypothesis likes small numbers
    count, spread = 1 + spread % 5, spread // 5
    return [messages[spread // len(messages) ** place % len(messages)] for place in range(count)]


definitions = pool(lambda rng: [definition(rng) for _ in range(rng.randint(1, 2))], count=300)
