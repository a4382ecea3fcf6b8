"""What a report says of a run of pairs, of sampled answers, and of figures that stand together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaseek.recipe.load import save_recipe
from llamaseek.report.model import read_report
from llamaseek.report.outcome import read_outcome
from llamaseek.report.page import render_page
from llamaseek.report.plots import charts
from tests.train.tiny import recipe


def write_run(folder: Path, stage: str, ends: list[list[dict[str, Any]]], *lines: Any) -> Path:
    """A run folder with what was found before and after it, and lines of metrics."""
    folder.mkdir()
    save_recipe(recipe(folder, stage=stage, name=f"my {stage}"), folder / "recipe.yaml")
    for name, rows in zip(("before", "after", "metrics"), (*ends, list(lines)), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def step(number: int, **figures: float) -> dict[str, Any]:
    return {"step": number, "loss": 0.5, "lr": 0.1, "tokens": 9, "tokens_per_second": 5.0,
            **figures}  # fmt: skip


PAIR = {"prompt": "Well?", "chosen": "Yes.", "rejected": "No."}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """DPO on four held-out pairs: one flips to its chosen answer, one to its rejected one."""
    margins = [(-2.0, 3.0), (1.0, 2.0), (0.5, -0.25), (-1.0, -0.5)]
    ends = [[{**PAIR, "margin": pair[end]} for pair in margins] for end in (0, 1)]
    first = {"step": 0, "val_loss": 0.7, "val_accuracy": 0.0, "val_equal": 1.0, "val_margin": 0.0}
    last = {"step": 2, "val_loss": 0.6, "val_accuracy": 0.75, "val_equal": 0.0, "val_margin": 0.3}
    trained = [step(1, accuracy=0.0, equal=1.0, margin=0.0), step(2, accuracy=1.0, equal=0.0)]
    return write_run(tmp_path / "run", "dpo", ends, first, *trained, last)


def test_pairs_show_margins_and_the_ones_that_flipped_first(pairs: Path) -> None:
    found = read_outcome(pairs)
    measures = {one.name: (one.before, one.after) for one in found.measures}
    assert measures["chosen is likelier"] == (0.5, 0.5)
    assert measures["margin (nats)"] == (pytest.approx(-0.375), pytest.approx(1.0625))
    assert measures["flipped to chosen"] == (None, 0.25)
    flipped = next(one for one in found.measures if one.name == "flipped to chosen")
    assert "The other way round: 25.0%" in flipped.meaning
    shown = [(side.before, side.after, side.right) for side in found.samples]
    assert shown[:2] == [
        ("-2.00 nats", "+3.00 nats (flipped)", True),
        ("+0.50 nats", "-0.25 nats (flipped)", False),
    ]
    assert not any("flipped" in after for _, after, _ in shown[2:])


def test_no_accuracy_is_shown_of_pairs_that_are_all_equal(pairs: Path) -> None:
    """Before DPO the model is its own reference: none of its pairs is ahead, and none is wrong."""
    accuracy = next(one for one in read_outcome(pairs).measures if one.name == "accuracy")
    assert (accuracy.before, accuracy.after) == (None, 0.75)
    assert "all pairs are equal" in accuracy.meaning
    page = render_page(read_report(pairs))
    row = page[page.index("<tr><td>accuracy") :].split("</tr>")[0]
    assert ">–<" in row and "<b>75.0%</b>" in row and ">0.0%<" not in row
    assert "<h1>my dpo</h1>" in page and "<h2>Direct preference optimization<" in page


def test_answers_are_shown_with_their_rewards(tmp_path: Path) -> None:
    ends = [[{"prompt": "2 + 2", "answer": a, "reward": r}] for a, r in (("5", 0.0), ("4", 1.0))]
    page = render_page(read_report(write_run(tmp_path / "run", "grpo", ends, step(1, reward=0.5))))
    assert "5\n(reward 0)" in page and '<span class="right">4\n(reward 1)' in page


def test_ten_samples_are_shown(tmp_path: Path) -> None:
    ends = [[{"prompt": f"ask {n}", "answer": when, "wanted": "w"} for n in range(12)]
            for when in ("was", "is")]  # fmt: skip
    page = render_page(read_report(write_run(tmp_path / "run", "sft", ends, step(1))))
    assert page.count("<td>ask ") == 10


def test_curves_stand_together_where_they_are_the_same_quantity() -> None:
    steps = [step(n, reward=0.5, kl=0.1) for n in (1, 2)]
    tested = [{"step": 2, "val_loss": 0.4, "val_reward": 0.7}]
    drawn = {chart.title: chart.svg for chart in charts(steps, tested, sampled=True)}
    both = [title for title, svg in drawn.items() if ">training<" in svg and ">held out<" in svg]
    assert both == ["loss"]  # what was sampled is no greedy answer
    assert ">held out<" in drawn["held-out reward"] and ">held out<" not in drawn["reward"]
    together = {chart.title: chart.svg for chart in charts(steps, tested)}
    assert ">held out<" in together["reward"] and "held-out reward" not in together
