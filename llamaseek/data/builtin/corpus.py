"""The generated parts of the pre-training mix, a document at a time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from llamaseek.data.builtin.guard import category_text, guard_text, policy_text
from llamaseek.data.builtin.stories import story
from llamaseek.data.builtin.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    DAYS,
    DICTIONARY,
    FACTS,
    LANDMARKS,
    NAMES,
    THINGS,
)


def _stories(rng: Random) -> str:
    return story(rng, "train").text


def _math(rng: Random) -> str:
    lines = []
    for _ in range(rng.randint(2, 6)):
        a, b = rng.randint(1, 20), rng.randint(1, 20)
        lines.append(
            f"{a} + {b} = {a + b}" if rng.random() < 0.6 else f"The sum of {a} and {b} is {a + b}."
        )
    return "\n".join(lines)


def _reasoning(rng: Random) -> str:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b, c = rng.randint(2, 9), rng.randint(1, 9), rng.randint(1, 2)
    return (
        f"{name} has {a} {thing}. {name} buys {b} more and loses {c}. "
        f"Step 1: {a} + {b} = {a + b}. Step 2: {a + b} - {c} = {a + b - c}. "
        f"So the answer is {a + b - c}."
    )


def _languages(rng: Random) -> str:
    lines = []
    for word in rng.sample(tuple(DICTIONARY), 3):
        spanish, french = DICTIONARY[word]
        lines.append(f"The word {word} in Spanish is {spanish}, and {word} in French is {french}.")
    return "\n".join(lines)


def _knowledge(rng: Random) -> str:
    sentences = [_fact(rng), _errand(rng), _feeling(rng)]
    rng.shuffle(sentences)
    return " ".join(sentences)


def _fact(rng: Random) -> str:
    fact = rng.choice(tuple(FACTS))
    answer = FACTS[fact]
    if rng.random() < 0.5:
        return f"{fact[0].upper()}{fact[1:]} is {answer}."
    return f"{answer[0].upper()}{answer[1:]} is {fact}."


def _errand(rng: Random) -> str:
    name, day = rng.choice(NAMES), rng.choice(DAYS)
    city, place = rng.choice(CITIES), rng.choice(LANDMARKS)
    return rng.choice(
        (
            f"On {day} {name} flew to {city} and spent time on {place}.",
            f"{name} ate in a restaurant in {city} near {place} on {day}.",
            f"{name} took a picture of {place} in {city}.",
            f"The {rng.choice(ANIMALS)} of {name} is {rng.choice(COLOURS)}.",
        )
    )


def _feeling(rng: Random) -> str:
    good = ("good", "happy", "great", "fine", "cheerful", "calm", "proud")
    bad = ("bad", "sad", "tired", "terrible", "lonely", "angry", "upset", "worried")
    name, positive = rng.choice(NAMES), rng.random() < 0.5
    face = "smiled" if positive else "cried"
    return f"{name} was feeling {rng.choice(good if positive else bad)} and {face}."


SOURCES: dict[str, Callable[[Random], str]] = {
    "stories": _stories,
    "math": _math,
    "reasoning": _reasoning,
    "languages": _languages,
    "knowledge": _knowledge,
    "categories": category_text,
    "policies": policy_text,
    "guard": guard_text,
}


def document(source: str, rng: Random) -> str:
    """One document of a generated source."""
    return SOURCES[source](rng)
