"""Published scores of the lecture's benchmarks, and the picture of its table.

Model cards of meta-llama/llama-models (a9c89c4) and DeepSeek-V3's README (9b4e978). A model is
compared with a figure of the same protocol only (docs/eval.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamaseek.pictures import BLUE, GREY, VERMILION, save

if TYPE_CHECKING:
    from llamaseek.evals.run import Evaluation

COLUMNS = ("mmlu", "gpqa", "humaneval", "gsm8k", "math")
ITEMS = {"mmlu": 14_042, "gpqa": 448, "humaneval": 164, "gsm8k": 1_319, "math": 5_000}
"""Rows of each set, from which a published figure's standard error follows."""

TITLES = {
    "mmlu": "MMLU\n5-shot",
    "gpqa": "GPQA\n0-shot",
    "humaneval": "HumanEval\n0-shot",
    "gsm8k": "GSM8K\n8-shot CoT",
    "math": "MATH\n4-shot CoT",
}
METRICS = {
    "mmlu": ("mmlu", "acc", "none"),
    "gpqa": ("gpqa_main_zeroshot", "acc", "none"),
    "humaneval": ("humaneval", "pass@1", "create_test"),
    "gsm8k": ("gsm8k_cot", "exact_match", "flexible-extract"),
    "math": ("minerva_math", "exact_match", "none"),
}
"""Where lm-eval's results have the figure of each column."""

SCORES: Mapping[str, tuple[float | None, ...]] = {
    "llama-3-8b-instruct": (68.4, 34.2, 62.2, 79.6, 30.0),
    "llama-3-70b-instruct": (82.0, 39.5, 81.7, 93.0, 50.4),
    "llama-3.1-8b-instruct": (69.4, 30.4, 72.6, 84.5, 51.9),
    "llama-3.1-70b-instruct": (83.6, 46.7, 80.5, 95.1, 68.0),
    "llama-3.1-405b-instruct": (87.3, 50.7, 89.0, 96.8, 73.8),
    "llama-3.2-1b-instruct": (49.3, 27.2, None, 44.4, 30.6),
    "llama-3.2-3b-instruct": (63.4, 32.8, None, 77.7, 48.0),
    "deepseek-v3-base": (87.1, None, 65.2, 89.3, 61.6),
}
"""Percentages by published model, in the order of `COLUMNS`; None where none is published."""


MARK = {"fmt": "o", "markersize": 4, "capsize": 3, "elinewidth": 1}


def like_for_like(model: str, column: str) -> bool:
    """Whether a figure is of the column's protocol: later than 3.0, Meta's MATH is 0-shot."""
    return not (column == "math" and model.startswith(("llama-3.1", "llama-3.2")))


def standard_error(column: str, score: float) -> float:
    """Of a published percentage, as of a share of the set's rows."""
    share = score / 100
    return 100 * math.sqrt(share * (1 - share) / ITEMS[column])


def measured(evaluation: Evaluation) -> dict[str, tuple[float, float]]:
    """Percentage and standard error of each of the lecture's columns that were measured."""
    found = {}
    for column, (task, metric, name) in METRICS.items():
        figures = evaluation.results["results"].get(task, {})
        value = figures.get(f"{metric},{name}")
        if value is not None:
            error = figures.get(f"{metric}_stderr,{name}")
            spread = float(error) if isinstance(error, int | float) else math.nan
            found[column] = 100 * float(value), 100 * spread
    return found


def plot_table(evaluations: Sequence[Evaluation], path: Path) -> None:
    """The lecture's table as a picture: published figures as marks, measured ones beside them.

    Bars are standard errors. UserError for a path that cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    ours = [(evaluation.model, measured(evaluation)) for evaluation in evaluations]
    names = [*SCORES, *(name for name, _ in ours)]
    for place, (panel, column) in enumerate(zip(panels, COLUMNS, strict=True)):
        for row, (name, scores) in enumerate(SCORES.items()):
            score = scores[place]
            if score is not None:
                color = GREY if name.startswith("deepseek") else BLUE
                panel.errorbar(score, row, xerr=standard_error(column, score), fmt="o", color=color)
        for row, (_, figures) in enumerate(ours, len(SCORES)):
            if column in figures:
                value, error = figures[column]
                spread = None if math.isnan(error) else error
                panel.errorbar(value, row, xerr=spread, color=VERMILION, **MARK)
        panel.set_title(TITLES[column], fontsize=9)
        panel.set_xlim(0, 100)
        panel.grid(axis="x", alpha=0.3)
        panel.set_yticks(range(len(names)), [Path(name).name for name in names], fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel(
        "% right, with one standard error; red: measured here; hollow: another protocol", fontsize=9
    )
    save(figure, path)
