"""Rows of the built-in generators, in the formats that users have."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from llamaseek.data.bad_rows import Row
from llamaseek.data.builtin.arithmetic import problem
from llamaseek.data.builtin.guard import guard_item, policy_turns
from llamaseek.data.builtin.instructions import KINDS, instruction_item
from llamaseek.data.builtin.preferences import preference_item
from llamaseek.data.builtin.reviews import review_item
from llamaseek.data.builtin.tasks import TASKS, task_item
from llamaseek.data.builtin.words import Split
from llamaseek.errors import unknown_name


def turn(role: str, content: str) -> dict[str, str]:
    """One message."""
    return {"role": role, "content": content}


def generated_rows(wanted: dict[str, int], seed: int | str, split: Split) -> Iterator[Row]:
    """Rows of the built-in generators, each so many: the names are `GENERATORS`."""
    for name, count in wanted.items():
        if name not in GENERATORS:
            raise unknown_name("data.rows generator", name, list(GENERATORS))
        rng = Random(f"{seed}/{name}/{split}")
        for number in range(count):
            yield f"{name}:{number}", GENERATORS[name](rng, split)


def _task_row(rng: Random, split: Split) -> dict[str, Any]:
    item = task_item(rng.choice(TASKS), rng, split)
    return {"messages": [turn("user", item.input), turn("assistant", item.output)]}


def _instruction_row(rng: Random, split: Split) -> dict[str, Any]:
    item = instruction_item(rng.choice(KINDS), rng, split)
    return {"messages": [turn("user", item.input), turn("assistant", item.output)]}


def _preference_row(rng: Random, split: Split) -> dict[str, Any]:
    item = preference_item(rng, split)
    return {"prompt": item.prompt, "chosen": item.chosen, "rejected": item.rejected}


def _arithmetic_row(rng: Random, split: Split) -> dict[str, Any]:
    item = problem(rng, split)
    return {"prompt": item.question, "completion": item.answer, "answer": item.answer}


def _policy_row(rng: Random, split: Split) -> dict[str, Any]:
    turns = policy_turns(rng, split=split)
    pairs = [(turn("user", utterance), turn("assistant", verdict)) for utterance, verdict in turns]
    return {"messages": [message for pair in pairs for message in pair]}


def _guard_row(rng: Random, split: Split) -> dict[str, Any]:
    item = guard_item(rng, split)
    return {"messages": [turn("user", item.prompt), turn("assistant", item.verdict)]}


def _review_row(rng: Random, split: Split) -> dict[str, Any]:
    item = review_item(rng, split)
    return {"messages": [turn("user", item.input), turn("assistant", item.output)]}


GENERATORS = {
    "tasks": _task_row,
    "instructions": _instruction_row,
    "preferences": _preference_row,
    "arithmetic": _arithmetic_row,
    "guard": _guard_row,
    "reviews": _review_row,
    "policies": _policy_row,
}
