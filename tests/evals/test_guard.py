"""Guards scored on generated conversations: right, wrong, and silent ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamaseek.data.builtin.guard import GuardItem
from llamaseek.engine.request import Completion, Output, Request
from llamaseek.evals.guard import held_out, score_guard
from llamaseek.safety.guard import Guard, Policy
from tests.safety.scripted import guard_tokenizer

ITEMS = held_out(60)


class Oracle:
    """An engine that gives each item a set answer."""

    def __init__(
        self, answer: Callable[[GuardItem], str], items: Sequence[GuardItem] = ITEMS
    ) -> None:
        self.answer, self.items = answer, items

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        return [
            Output(request, [Completion(0, [], self.answer(item), "stop", [])], None, 0, 0, 0, 0)
            for request, item in zip(requests, self.items, strict=True)
        ]


def score(answer: Callable[[GuardItem], str]) -> tuple[float | None, ...]:
    guard = Guard(Oracle(answer), Policy(guard_tokenizer()))  # type: ignore[arg-type]
    found = score_guard(guard, ITEMS)
    assert found.items == len(ITEMS)
    return found.verdicts, found.exact, found.dropped, found.alarms


def test_scores_of_guards_whose_answers_are_known() -> None:
    unsafe = sum(bool(item.violated) for item in ITEMS) / len(ITEMS)
    assert score(lambda item: item.verdict) == (1, 1, 1, 0)
    assert score(lambda item: "safe") == (1 - unsafe, 1 - unsafe, 1, 0)
    assert score(lambda item: "unsafe\nS99") == (unsafe, 0, 0, 1)
    assert score(lambda item: "who knows") == (0, 0, 0, 1)


def test_a_share_of_no_items_is_none() -> None:
    violated = [item for item in ITEMS if item.violated]
    engine = Oracle(lambda item: "safe", violated)
    found = score_guard(Guard(engine, Policy(guard_tokenizer())), violated)  # type: ignore[arg-type]
    assert found.verdicts == 0 and found.dropped is None and found.alarms is None


def test_held_out_conversations_are_always_the_same_and_all_differ() -> None:
    assert held_out(20) == ITEMS[:20]
    assert len({item.key for item in ITEMS}) == len(ITEMS)
