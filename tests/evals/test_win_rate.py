"""The win rate: a judge that sees both answers in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamaseek.errors import UserError
from llamaseek.evals import judge
from llamaseek.evals.judge import judge_run, wins
from llamaseek.files import read_jsonl, write_jsonl

BEFORE = [{"prompt": "Add 1 and 1.", "answer": text} for text in ("no idea", "two", "2")]
AFTER = [{"prompt": "Add 1 and 1.", "answer": text} for text in ("two", "no idea", "2")]


def knows(texts: Sequence[str]) -> list[int | None]:
    """A judge that prefers `two`, and cannot tell equal answers apart."""
    found = [[line.endswith("two") for line in text.split("\n\n")[1:]] for text in texts]
    return [None if first == second else int(second) for first, second in found]


def test_a_win_is_a_win_in_both_orders() -> None:
    assert wins(knows, BEFORE, AFTER) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("place", [0, 1])
def test_a_judge_that_likes_a_place_gives_a_draw(place: int) -> None:
    assert wins(lambda texts: [place] * len(texts), BEFORE, AFTER) == [0.5] * 3


def test_a_runs_answers_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def opened(*given: Any) -> Any:
        asked.append(given)
        return knows

    monkeypatch.setattr(judge, "open_judge", opened)
    write_jsonl(tmp_path / "before.jsonl", BEFORE)
    write_jsonl(tmp_path / "after.jsonl", AFTER)
    judge_run(tmp_path, "judge", None)
    assert [line["win"] for line in read_jsonl(tmp_path / "judged.jsonl")] == [1.0, 0.0, 0.5]
    assert asked[0][:2] == ("judge", None)
    write_jsonl(tmp_path / "after.jsonl", [{"margin": 1.0}] * 3)
    with pytest.raises(UserError, match="holds no answers to held-out rows"):
        judge_run(tmp_path, "judge", None)
