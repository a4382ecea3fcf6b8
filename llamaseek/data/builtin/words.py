"""The words that generated text is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, Protocol, TypeVar

COLOURS = (
    "red", "blue", "brown", "grey", "white", "black", "quick", "small", "happy", "sleepy", "old",
    "young",
)  # fmt: skip
# How each animal gets away; the order sets what is likeliest after what.
ESCAPES = {
    "fox": "ran away",
    "bird": "flew away",
    "fish": "swam away",
    "rabbit": "hopped away",
    "snake": "slid away",
    "horse": "galloped away",
    "duck": "paddled away",
    "squirrel": "climbed away",
    "frog": "jumped away",
    "mouse": "slipped away",
    "goat": "trotted away",
    "bee": "buzzed away",
}
ANIMALS = tuple(ESCAPES)
VERBS = (
    "chased", "followed", "watched", "found", "met", "heard", "called", "surprised", "teased",
    "noticed",
)  # fmt: skip
ADVERBIALS = (
    "in the nick of time",
    "before it was too late",
    "as fast as it could",
    "without a sound",
    "into the night",
    "with a smile",
)
SCENES = (
    "It was a cold morning in the forest.",
    "The sun was shining on the hill.",
    "It was a quiet day by the river.",
    "The wind was strong that night.",
    "It was raining in the valley.",
    "Snow lay on the old bridge.",
)
CLOSINGS = ("", "The day was over.", "Everyone went home.", "The moon came out.")

CITIES = (
    "New York", "Paris", "London", "Rome", "Madrid", "Berlin", "Tokyo", "Sydney", "Cairo",
    "Vienna", "Lisbon", "Dublin", "Oslo", "Boston", "Chicago", "Seattle", "Toronto", "Mumbai",
    "Athens", "Prague",
)  # fmt: skip
LANDMARKS = (
    "Times Square", "Central Park", "the Old Bridge", "the Grand Museum", "the Royal Palace",
    "the Opera House", "the City Library", "Market Street", "the Blue Tower", "the Night Market",
    "the Art Gallery", "the Harbour", "the Rose Garden", "the Stone Church", "the Science Park",
    "Queen Square", "the Long Beach", "the Botanic Garden", "the Main Station", "Castle Hill",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Mary", "Jack", "Emma", "Leo", "Nora")
THINGS = ("apples", "books", "coins", "pens", "stones", "cards", "cups", "keys")

FACTS = {
    "the tallest mountain in the world": "Mount Everest",
    "the largest ocean in the world": "the Pacific Ocean",
    "the longest river in Africa": "the Nile",
    "the largest planet": "Jupiter",
    "the planet closest to the sun": "Mercury",
    "the largest land animal": "the elephant",
    "the fastest land animal": "the cheetah",
    "the tallest animal": "the giraffe",
    "the largest animal in the sea": "the blue whale",
    "the coldest continent": "Antarctica",
    "the largest continent": "Asia",
    "the largest country in the world": "Russia",
    "the smallest country in the world": "Vatican City",
    "the hardest natural material": "diamond",
    "the lightest gas": "hydrogen",
    "the largest hot desert": "the Sahara",
    "the star closest to the earth": "the sun",
    "the capital of France": "Paris",
    "the capital of England": "London",
    "the capital of Italy": "Rome",
    "the capital of Spain": "Madrid",
    "the capital of Germany": "Berlin",
    "the capital of Japan": "Tokyo",
    "the capital of Egypt": "Cairo",
    "the capital of Austria": "Vienna",
    "the capital of Portugal": "Lisbon",
    "the capital of Ireland": "Dublin",
    "the capital of Norway": "Oslo",
    "the capital of Greece": "Athens",
    "the capital of Canada": "Ottawa",
    "the capital of China": "Beijing",
    "the capital of Russia": "Moscow",
    "the capital of Poland": "Warsaw",
    "the capital of Sweden": "Stockholm",
    "the capital of Finland": "Helsinki",
    "the capital of Peru": "Lima",
    "the capital of Cuba": "Havana",
    "the capital of India": "New Delhi",
    "the capital of Hungary": "Budapest",
    "the capital of Denmark": "Copenhagen",
}

# English word → (Spanish, French)
DICTIONARY = {
    "red": ("rojo", "rouge"),
    "blue": ("azul", "bleu"),
    "white": ("blanco", "blanc"),
    "black": ("negro", "noir"),
    "small": ("pequeño", "petit"),
    "young": ("joven", "jeune"),
    "fox": ("zorro", "renard"),
    "bird": ("pájaro", "oiseau"),
    "fish": ("pez", "poisson"),
    "rabbit": ("conejo", "lapin"),
    "horse": ("caballo", "cheval"),
    "frog": ("rana", "grenouille"),
    "mouse": ("ratón", "souris"),
    "goat": ("cabra", "chèvre"),
}


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
