"""The generated data: splits that cannot meet, graders that can say no."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaseek.data.builtin.corpus import SOURCES, document
from llamaseek.data.builtin.instructions import (
    KINDS,
    LECTURE_INSTRUCTION,
    WORDINGS,
    followed,
    instruction_item,
)
from llamaseek.data.builtin.preferences import preference_item
from llamaseek.data.builtin.stories import parses, prompt, story
from llamaseek.data.builtin.tasks import LECTURE_EXAMPLES, TASKS, exact_match, task_item
from llamaseek.data.builtin.words import split_of
from llamaseek.evals.generated import distinct

STORY = "The red fox chased the blue bird. And the bird flew away in the nick of time!"


@given(st.integers(), st.sampled_from(("train", "test")))
def test_every_story_parses(seed: int, split: str) -> None:
    rng = Random(seed)
    made = story(rng, split)  # type: ignore[arg-type]
    assert parses(made.text) and split_of(made.key) == split
    start, whole = prompt(rng, split)  # type: ignore[arg-type]
    assert whole.text.startswith(start) and 3 <= len(start.split()) <= 6


@pytest.mark.parametrize(
    "text",
    [
        "The red fox chased the blue bird.",  # no second sentence
        STORY.replace("And the bird", "And the fox"),  # another animal gets away
        STORY.replace("flew away", "swam away"),  # not how birds get away
        STORY.replace("blue", "red"),  # the same colour twice
        STORY.replace("fox", "bird"),  # after itself
        STORY.replace("chased", "eated"),
        STORY + " And more.",
        "",
    ],
)
def test_what_is_no_story_does_not_parse(text: str) -> None:
    assert parses(STORY)
    assert not parses(text)


@pytest.mark.parametrize("task", TASKS)
def test_task_items_of_the_splits_never_meet(task: str) -> None:
    train = {task_item(task, Random(f"a{n}"), "train").key for n in range(1500)}
    test = distinct(500, task, lambda rng: task_item(task, rng, "test"))
    assert len({item.key for item in test}) == 500
    assert not train & {item.key for item in test}
    assert all(exact_match(item, f" {item.output}\n") for item in test)
    assert not any(exact_match(item, item.output + "?") for item in test)


def test_instructions_held_out_by_wording_and_content() -> None:
    rng = Random(3)
    train = [instruction_item(rng.choice(KINDS), rng, "train") for _ in range(4000)]
    test = [instruction_item(rng.choice(KINDS), rng, "test") for _ in range(1000)]
    for item in test:
        wordings = [w.format(item.content) for w in WORDINGS[item.kind].held_out]
        assert item.input in wordings
    assert not {item.key for item in train} & {item.key for item in test}
    held = {w.split("{0}")[0] for kind in WORDINGS.values() for w in kind.held_out if "{0}" in w}
    long = tuple(start for start in held if len(start) > 30)
    assert not any(item.input.startswith(long) for item in train)


def test_following_is_decided_by_program() -> None:
    assert followed(LECTURE_INSTRUCTION, LECTURE_INSTRUCTION.output)
    assert followed(LECTURE_INSTRUCTION, STORY.replace("chased", "found"))  # another end is fine
    assert not followed(LECTURE_INSTRUCTION, STORY.replace("red fox", "old fox"))
    assert not followed(LECTURE_INSTRUCTION, "The red fox")
    rng = Random(1)
    for kind in KINDS:
        item = instruction_item(kind, rng, "test")
        assert followed(item, item.output) and not followed(item, "")


def test_preference_pairs_differ_and_are_held_out() -> None:
    rng = Random(5)
    train = [preference_item(rng, "train") for _ in range(1500)]
    test = [preference_item(rng, "test") for _ in range(600)]
    assert all(item.chosen != item.rejected for item in train + test)
    assert len({item.flaw for item in test}) >= 5
    assert not {item.key for item in train} & {item.key for item in test}


def test_the_lecture_s_examples_are_right_answers() -> None:
    assert [item.task for item in LECTURE_EXAMPLES] == list(TASKS)
    assert LECTURE_INSTRUCTION.output == STORY


@pytest.mark.parametrize("source", SOURCES)
def test_documents_are_a_function_of_the_seed(source: str) -> None:
    assert document(source, Random(2)) == document(source, Random(2))
    assert len({document(source, Random(n)) for n in range(50)}) > 30
