"""The lecture's five fine-tuning tasks: plain text in, a short answer out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from llamaseek.data.builtin.stories import story
from llamaseek.data.builtin.words import (
    CITIES,
    CLOSINGS,
    DAYS,
    FACTS,
    LANDMARKS,
    NAMES,
    SCENES,
    Split,
    draw,
)


@dataclass(frozen=True)
class Item:
    """One question of a task and its only right answer."""

    task: str
    input: str
    output: str

    @property
    def key(self) -> str:
        """What makes it this item."""
        return f"{self.task}: {self.input}"


GOOD = ("good", "well", "happy", "great", "fine", "cheerful", "calm", "proud")
BAD = ("bad", "sad", "tired", "terrible", "lonely", "angry", "upset", "worried")
SUBJECTS = ("I am", "I was", "My friend is", "My sister is", "We are", "They are")
NEGATIONS = ("", "", "", "not ")
TIMES = (
    "today", "this morning", "tonight", "right now", "again", "this week", "at school", "at work",
    "after lunch", "at home",
)  # fmt: skip


def _sentiment(rng: Random) -> Item:
    negation, positive = rng.choice(NEGATIONS), rng.random() < 0.5
    word = rng.choice(GOOD if positive else BAD)
    text = f"{rng.choice(SUBJECTS)} {negation}feeling {word} {rng.choice(TIMES)}"
    return Item("sentiment", text, "Happy" if positive != bool(negation) else "Unhappy")


CARRIERS = (
    "I would love to go to {0} and spend time on {1}",
    "We are going to {0} and want to see {1}",
    "My trip to {0} began at {1}",
    "Last year we flew to {0} and walked to {1}",
    "She left {0} and took a picture of {1}",
    "They moved to {0} and live near {1}",
    "He wrote from {0} about {1}",
    "Meet me in {0} next to {1}",
)


def _entities(rng: Random) -> Item:
    city, place = rng.choice(CITIES), rng.choice(LANDMARKS)
    return Item("entities", rng.choice(CARRIERS).format(city, place), f"{city}, {place}")


WORDINGS = (
    "What is {0}?",
    "Can you name {0}?",
    "Tell me, what is {0}?",
    "Which one is {0}?",
    "Do you know {0}?",
    "What do we call {0}?",
)
LEADS = (
    "", "Quick question: ", "Please help me. ", "I wonder: ", "One more thing. ", "Hello! ",
    "For my homework: ", "Just checking: ", "A small quiz. ", "My friend asks: ", "Next: ",
    "Think first. ", "Here is one: ", "Now this. ", "Listen. ", "Try this: ",
)  # fmt: skip


def _question(rng: Random) -> Item:
    fact = rng.choice(tuple(FACTS))
    return Item("question", rng.choice(LEADS) + rng.choice(WORDINGS).format(fact), FACTS[fact])


def _summary(rng: Random) -> Item:
    made = story(rng, "train" if rng.random() < 0.9 else "test")
    parts = (rng.choice(SCENES), made.text, rng.choice(CLOSINGS))
    text = " ".join(part for part in parts if part)
    return Item("summary", text, f"The {made.subject} {made.verb} the {made.object}.")


INTENTS = {
    "book_flight": (
        "Book me a flight to {city} on {day}",
        "I need a plane ticket to {city} for {day}",
        "Fly me to {city} next {day}",
    ),
    "play_music": (
        "Play some music by {name} on {day}",
        "Put on the new song by {name} this {day}",
        "I want to hear {name} sing on {day}",
    ),
    "set_alarm": (
        "Wake me up at {hour} on {day}",
        "Set an alarm for {hour} on {day}",
        "I have to get up at {hour} this {day}",
    ),
    "get_weather": (
        "Will it rain in {city} on {day}",
        "What is the weather like in {city} on {day}",
        "Is it cold in {city} this {day}",
    ),
    "order_food": (
        "Order a pizza for {name} on {day}",
        "I want soup and bread for {name} this {day}",
        "Get {name} some lunch on {day}",
    ),
    "send_message": (
        "Send a message to {name} about {day}",
        "Text {name} that I am late on {day}",
        "Tell {name} to call me on {day}",
    ),
    "find_restaurant": (
        "Find a good restaurant in {city} for {day}",
        "Where can I eat in {city} on {day}",
        "I need a table for two in {city} on {day}",
    ),
    "turn_on_lights": (
        "Turn on the lights for {name} at {hour}",
        "Make it brighter for {name} at {hour}",
        "Switch on the lamp for {name} at {hour}",
    ),
}


def _intent(rng: Random) -> Item:
    intent = rng.choice(tuple(INTENTS))
    slots = {
        "city": rng.choice(CITIES),
        "day": rng.choice(DAYS),
        "name": rng.choice(NAMES),
        "hour": f"{rng.randint(1, 12)} o'clock",
    }
    return Item("intent", rng.choice(INTENTS[intent]).format(**slots), intent)


MAKERS: dict[str, Callable[[Random], Item]] = {
    "sentiment": _sentiment,
    "entities": _entities,
    "question": _question,
    "summary": _summary,
    "intent": _intent,
}
TASKS = tuple(MAKERS)
HELD_OUT = {"sentiment": 0.4, "entities": 0.25, "question": 0.2, "intent": 0.4}

LECTURE_EXAMPLES = (
    Item("sentiment", "I am not feeling good today", "Unhappy"),
    Item(
        "entities",
        "I would love to go to New York and spend time on Times Square",
        "New York, Times Square",
    ),
    Item("question", "What is the tallest mountain in the world?", "Mount Everest"),
    Item(
        "summary",
        "It was a cold morning in the forest. The red fox chased the blue bird. "
        "And the bird flew away in the nick of time!",
        "The fox chased the bird.",
    ),
    Item("intent", "Book me a flight to Paris on Monday", "book_flight"),
)


def task_item(task: str, rng: Random, split: Split) -> Item:
    """An item of one task and split."""
    return draw(rng, MAKERS[task], split, HELD_OUT.get(task, 0.1))


def exact_match(item: Item, answer: str) -> bool:
    """Whether the answer is the right one, to the character."""
    return answer.strip() == item.output
