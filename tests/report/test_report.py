"""The page: whole, self-contained, and safe from what a model may say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llamaseek.errors import UserError
from llamaseek.files import read_jsonl
from llamaseek.recipe.load import save_recipe
from llamaseek.report.model import read_report
from llamaseek.report.page import render_page, write_report
from llamaseek.report.plots import smooth
from tests.train.tiny import recipe

ODD = "<script>alert('no')</script>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A quickstart's folder, as its stages leave it."""
    top = tmp_path / "runs" / "quick"
    for name, stage in (
        ("pretrain", "pretrain"),
        ("sft", "sft"),
        ("instruct", "sft"),
        ("dpo", "dpo"),
    ):
        run = top / name
        run.mkdir(parents=True)
        save_recipe(recipe(tmp_path, stage=stage), run / "recipe.yaml")
        lines = [
            {"step": n, "loss": 3 / n, "lr": 0.1, "tokens": 9 * n, "tokens_per_second": 5.0}
            for n in range(1, 5)
        ]
        lines[-1]["expert_load"] = [[1.0, 0.5, 1.5]]  # type: ignore[assignment]
        lines.append({"step": 4, "val_loss": 1.0, "val_bits_per_byte": 0.9})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {"sentiment": 0.1, "intent": 0.2}
    figures = {
        "family": "deepseek_v3",
        "story_parse_rate": 0.97,
        "mtp_acceptance": 0.91,
        "expert_load_max_over_mean": 1.25,
        "task_exact_match": {"before": tasks, "after": {"sentiment": 0.93, "intent": 0.94}},
        "instruction_following": {"before": 0.3, "after": 0.85},
        "preference_accuracy": {"before": 0.5, "after": 0.96},
        "task_exact_match_after_dpo": {"sentiment": 0.92, "intent": 0.945},
        "seconds": 300.0,
    }
    (top / "figures.json").write_text(json.dumps(figures))
    sample = {"stage": "sft", "prompt": ODD, "before": "", "after": ODD, "wanted": ODD}
    (top / "samples.json").write_text(json.dumps([sample]))
    return top


def test_the_page_says_all_and_fetches_nothing(folder: Path) -> None:
    page = write_report(folder).read_text()
    for shown in ("97.0%", "91.0%", "1.25 × mean", "93.0%", "85.0%", "96.0%", "94.5%", "5.0 min"):
        assert shown in page, shown
    for title in ("Pre-training", "Supervised fine-tuning", "Instruction tuning", "Preference"):
        assert title in page
    # Loss, learning rate, speed and expert load of four stages.
    assert page.count("<svg") == page.count("<figcaption>") == 16
    assert "llamaseek chat" in page and "llamaseek dpo" in page
    assert ODD not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert not list(folder.glob("*.partial"))


def test_the_same_run_gives_the_same_page(folder: Path) -> None:
    assert render_page(read_report(folder)) == render_page(read_report(folder))


def test_a_stage_alone_is_a_report_too(folder: Path) -> None:
    report = read_report(folder / "sft")
    assert len(report.stages) == 1 and report.stages[0].figures == []
    assert "<svg" in render_page(report)


def test_metrics_cut_short_by_a_kill_are_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1, "loss": 2}]
    path.write_text('{"step": 1, "lo\n{"step": 2, "loss": 1}\n')
    with pytest.raises(UserError, match="metrics.jsonl:1"):
        read_jsonl(path)


def test_smoothing_keeps_a_level_and_the_start() -> None:
    assert smooth([2.0] * 200) == pytest.approx([2.0] * 200)
    assert smooth([1.0, 2.0]) == [1.0, 2.0]


def test_a_phone_stacks_charts_and_nothing_is_wider_than_it(folder: Path) -> None:
    """At 390 pixels: each chart has the page's width and a height to be read, and no one scrolls
    sideways.
    """
    browser_of = pytest.importorskip("tests.serve.browser", reason="needs playwright")
    if browser_of.CHROMIUM is None:
        pytest.skip("needs Debian's package chromium")
    page = write_report(folder)
    with browser_of.chromium() as browser:
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        tab.goto(page.as_uri())
        boxes = [chart.bounding_box() for chart in tab.locator("figure svg").all()]
        assert len(boxes) == 16
        assert all(box["width"] > 300 and box["height"] > 120 for box in boxes)
        assert len({round(box["x"]) for box in boxes}) == 1
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
