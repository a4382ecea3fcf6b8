"""Two-sentence stories with a grammar: the lecture's "The red fox chased the blue bird"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from llamaseek.data.builtin.words import (
    ADVERBIALS,
    ANIMALS,
    COLOURS,
    ESCAPES,
    VERBS,
    Split,
    draw,
    lean,
)

PATTERN = re.compile(r"The (\w+) (\w+) (\w+) the (\w+) (\w+)\. And the (\w+) (\w+ away) ([\w ]+)!")


@dataclass(frozen=True)
class Story:
    """Who did what to whom, and how it ended."""

    adjective: str
    subject: str
    verb: str
    other_adjective: str
    object: str
    adverbial: str

    @property
    def key(self) -> str:
        """What makes it this story."""
        return self.text

    @property
    def opening(self) -> str:
        """The first sentence."""
        who, whom = f"{self.adjective} {self.subject}", f"{self.other_adjective} {self.object}"
        return f"The {who} {self.verb} the {whom}."

    @property
    def ending(self) -> str:
        """The second sentence."""
        return f"And the {self.object} {ESCAPES[self.object]} {self.adverbial}!"

    @property
    def text(self) -> str:
        """Both sentences."""
        return f"{self.opening} {self.ending}"


def _make(rng: Random) -> Story:
    first = rng.randrange(len(COLOURS))
    subject = lean(rng, ANIMALS, first)
    verb = lean(rng, VERBS, subject)
    second = lean(rng, COLOURS, verb + 1)
    other = lean(rng, ANIMALS, second)
    adverbial = lean(rng, ADVERBIALS, other - 1)
    if second == first:
        second = (second + 1) % len(COLOURS)
    if other == subject:
        other = (other + 1) % len(ANIMALS)
    return Story(
        COLOURS[first], ANIMALS[subject], VERBS[verb], COLOURS[second], ANIMALS[other],
        ADVERBIALS[adverbial],
    )  # fmt: skip


def story(rng: Random, split: Split) -> Story:
    """A story of the split."""
    return draw(rng, _make, split)


def prompt(rng: Random, split: Split) -> tuple[str, Story]:
    """A story's first 3 to 6 words, and the story."""
    made = story(rng, split)
    return " ".join(made.text.split()[: rng.randint(3, 6)]), made


def parses(text: str) -> bool:
    """Whether the whole text is one story of the grammar, agreement included."""
    found = PATTERN.fullmatch(text.strip())
    if found is None:
        return False
    adjective, subject, verb, other, whom, again, escape, adverbial = found.groups()
    known = adjective in COLOURS and other in COLOURS and verb in VERBS and subject in ANIMALS
    agrees = again == whom and ESCAPES.get(whom) == escape and adverbial in ADVERBIALS
    return known and agrees and adjective != other and subject != whom
