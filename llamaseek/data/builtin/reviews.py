"""Reviews with an emotion, for the lecture's question of which model to make a detector from."""

from __future__ import annotations

from random import Random

from llamaseek.data.builtin.tasks import Item
from llamaseek.data.builtin.words import CITIES, DAYS, NAMES, Split, draw

THINGS = (
    "camera",
    "jacket",
    "lamp",
    "phone",
    "bicycle",
    "kettle",
    "guitar",
    "game",
    "tent",
    "watch",
)
OPENINGS = (
    "I bought this {thing} on {day}.",
    "The {thing} came on {day}.",
    "{name} gave me this {thing} in {city}.",
    "We took the {thing} to {city}.",
    "This is the {thing} that {name} wanted.",
)
CUES = {
    "joy": (
        "I smiled all day",
        "it made {name} so happy",
        "what a cheerful little thing",
        "we laughed and laughed",
        "I would love another one",
        "it is a great gift",
    ),
    "anger": (
        "I was angry when it broke",
        "nobody at the shop would listen",
        "it is the worst I ever had",
        "they took my money and said nothing",
        "I called three times and shouted",
        "{name} threw it at the wall",
    ),
    "sadness": (
        "I cried when it stopped",
        "it reminds me of what I lost",
        "{name} felt lonely with it",
        "it was terrible to see it go",
        "now the house is so quiet",
        "we were sad to send it back",
    ),
    "fear": (
        "I was worried it would burn",
        "smoke came out and we ran",
        "{name} was afraid to touch it",
        "it made a noise in the night",
        "I do not dare to use it",
        "we hid it from the children",
    ),
    "surprise": (
        "I did not expect it to sing",
        "nobody told us it could do that",
        "it was another colour than I thought",
        "suddenly it began to glow",
        "{name} could not believe it",
        "we found a second one in the box",
    ),
}
CLOSINGS = ("", "It cost a lot.", "It was on sale.", "The box was blue.", "That was last week.")
EMOTIONS = tuple(CUES)
QUESTION = "Which emotion is in this review? {0}"


def _review(rng: Random) -> Item:
    emotion = rng.choice(EMOTIONS)
    slots = {
        "thing": rng.choice(THINGS),
        "day": rng.choice(DAYS),
        "name": rng.choice(NAMES),
        "city": rng.choice(CITIES),
    }
    cue = rng.choice(CUES[emotion])
    parts = (rng.choice(OPENINGS), cue[0].upper() + cue[1:] + ".", rng.choice(CLOSINGS))
    text = " ".join(part for part in parts if part).format(**slots)
    return Item("emotion", QUESTION.format(text), emotion)


def review_item(rng: Random, split: Split) -> Item:
    """A review and its emotion."""
    return draw(rng, _review, split, 0.3)
