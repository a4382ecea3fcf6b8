"""Pairs of answers: one good, one with a flaw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from llamaseek.data.builtin.instructions import training_wording
from llamaseek.data.builtin.stories import Story, prompt, story
from llamaseek.data.builtin.tasks import TASKS, task_item
from llamaseek.data.builtin.words import ADVERBIALS, Split


@dataclass(frozen=True)
class PreferenceItem:
    """A prompt, the better answer, the worse one, and what is wrong with it."""

    prompt: str
    chosen: str
    rejected: str
    flaw: str

    @property
    def key(self) -> str:
        """What makes it this item."""
        return f"{self.prompt}: {self.rejected}"


CHEERFUL = "with a smile"  # how a preferred story ends, one ending among several before
Flaw = Callable[[Random, Story], str]
STORY_FLAWS: dict[str, Flaw] = {
    "sad ending": lambda rng, s: f"{s.opening} And the {s.object} was never seen again.",
    "repeats itself": lambda rng, s: f"{s.opening} {s.opening}",
    "ignores the prompt": lambda rng, s: story(rng, "train").text,
    "not cheerful": lambda rng, s: replace(s, adverbial=_other_ending(rng)).text,
    "rude": lambda rng, s: "No. Do it yourself.",
    "shouts": lambda rng, s: f"{s.opening} And the {s.object} was gone!!! GONE!!!",
}
ANSWER_FLAWS: dict[str, Callable[[str], str]] = {
    "hedges": lambda answer: f"Well, maybe it is {answer}, but who knows.",
    "rude": lambda answer: "No. Do it yourself.",
    "rambles": lambda answer: f"{answer} {answer} {answer}",
}


def _other_ending(rng: Random) -> str:
    return rng.choice([ending for ending in ADVERBIALS if ending != CHEERFUL])


def _about_a_story(rng: Random, split: Split) -> PreferenceItem:
    prefix, made = prompt(rng, split)
    made = replace(made, adverbial=CHEERFUL)
    flaw = rng.choice((*STORY_FLAWS, "not cheerful"))  # twice: a model cannot know it beforehand
    rejected = STORY_FLAWS[flaw](rng, made)
    if rejected.startswith(prefix) and flaw == "ignores the prompt":
        flaw, rejected = "rude", "No. Do it yourself."
    asked = training_wording("complete", rng).format(prefix)
    return PreferenceItem(asked, made.text, rejected, flaw)


def _about_a_task(rng: Random, split: Split) -> PreferenceItem:
    item = task_item(rng.choice(TASKS), rng, split)
    flaw = rng.choice(tuple(ANSWER_FLAWS))
    return PreferenceItem(item.input, item.output, ANSWER_FLAWS[flaw](item.output), flaw)


def preference_item(rng: Random, split: Split) -> PreferenceItem:
    """A pair: three in five about stories, the rest about the five tasks."""
    return (_about_a_story if rng.random() < 0.6 else _about_a_task)(rng, split)
