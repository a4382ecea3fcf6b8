"""How often a judge finds a model's answers after a run better than those before it.

The judge sees both answers to a request twice, each one first once, so that a liking for a place
cancels out (Zheng et al. 2023, "Judging LLM-as-a-Judge", §3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError
from llamaseek.evals.judge import open_judge
from llamaseek.files import read_jsonl, write_jsonl

JUDGED = "judged.jsonl"
"""In a run folder: `win` of each held-out row, from 0 to 1."""

RUBRIC = (
    "A request and two answers to it follow. Which answer is better: right, helpful and to the "
    "point? The grade is 0 if answer 0 is better and 1 if answer 1 is better."
)
AT_ONCE = 8  # questions to an endpoint
Judge = Callable[[Sequence[str]], list[int | None]]
Answers = Sequence[Mapping[str, Any]]


def judge_run(folder: Path, model: str, url: str | None) -> None:
    """Compare the answers before and after a run, which lie in its folder, and add the wins.

    `model` is the judge's folder or name, or at `url` its name there. UserError where the run has
    no answers.
    """
    before, after = (read_jsonl(folder / f"{moment}.jsonl") for moment in ("before", "after"))
    if not after or "answer" not in after[0]:
        raise UserError(f"--judge: {folder} holds no answers to held-out rows")
    won = wins(open_judge(model, url, RUBRIC, 1, AT_ONCE), before, after)
    write_jsonl(folder / JUDGED, [{"win": one} for one in won])


def wins(judge: Judge, before: Answers, after: Answers) -> list[float]:
    """For each row the share of both orders in which the later answer won; a half where the judge
    gave no grade.
    """
    pairs = list(zip(before, after, strict=True))
    straight = judge([asked(one["prompt"], one["answer"], two["answer"]) for one, two in pairs])
    turned = judge([asked(one["prompt"], two["answer"], one["answer"]) for one, two in pairs])
    return [
        ((0.5 if first is None else first) + (0.5 if second is None else 1 - second)) / 2
        for first, second in zip(straight, turned, strict=True)
    ]


def asked(prompt: str, first: str, second: str) -> str:
    """What the judge reads of one row."""
    return f"Request: {prompt}\n\nAnswer 0: {first}\n\nAnswer 1: {second}"
