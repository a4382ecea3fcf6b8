"""Published scores of the lecture's benchmarks, and the picture of its table.

Model cards of meta-llama/llama-models (Llama 3, 3.1, 3.2, 3.3), DeepSeek-V3's README (base, chat)
and SmolLM2's cards. A model is compared with a figure of the same protocol only (docs/eval.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaseek.pictures import BLUE, GREY, VERMILION, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


@dataclass(frozen=True)
class PublishedScore:
    """A published percentage. `protocol` says how it was measured where not as the column says;
    `items` is the number of rows where the set is another.
    """

    value: float
    protocol: str = ""
    items: int | None = None


zero_shot = partial(PublishedScore, protocol="0-shot CoT")
cloze = partial(PublishedScore, protocol="0-shot, answer texts scored")
five_shot = partial(PublishedScore, protocol="5-shot")
diamond = partial(PublishedScore, protocol="GPQA Diamond, CoT", items=198)

PUBLISHED: Mapping[str, Sequence[float | PublishedScore | None]] = {
    "llama-3-8b": (66.6, None, None, None, None),
    "llama-3-8b-instruct": (68.4, 34.2, 62.2, 79.6, 30.0),
    "llama-3-70b": (79.5, None, None, None, None),
    "llama-3-70b-instruct": (82.0, 39.5, 81.7, 93.0, 50.4),
    "llama-3.1-8b": (66.7, None, None, None, None),
    "llama-3.1-8b-instruct": (69.4, 30.4, 72.6, 84.5, zero_shot(51.9)),
    "llama-3.1-70b": (79.3, None, None, None, None),
    "llama-3.1-70b-instruct": (83.6, 46.7, 80.5, 95.1, zero_shot(68.0)),
    "llama-3.1-405b": (85.2, None, None, None, None),
    "llama-3.1-405b-instruct": (87.3, 50.7, 89.0, 96.8, zero_shot(73.8)),
    "llama-3.2-1b": (32.2, None, None, None, None),
    "llama-3.2-1b-instruct": (49.3, 27.2, None, 44.4, zero_shot(30.6)),
    "llama-3.2-3b": (58.0, None, None, None, None),
    "llama-3.2-3b-instruct": (63.4, 32.8, None, 77.7, zero_shot(48.0)),
    "llama-3.3-70b-instruct": (zero_shot(86.0), diamond(50.5), 88.4, None, zero_shot(77.0)),
    "smollm2-135m": (cloze(31.5), None, None, five_shot(1.4), None),
    "smollm2-135m-instruct": (cloze(29.3), None, None, five_shot(1.4), None),
    "deepseek-v3-base": (87.1, None, 65.2, 89.3, 61.6),
    "deepseek-v3": (
        PublishedScore(88.5, "0-shot, generated"), diamond(59.1),
        PublishedScore(82.6, "HumanEval-Mul, eight languages", 8 * 164), None,
        PublishedScore(90.2, "MATH-500, 0-shot", 500),
    ),
}  # fmt: skip
SCORES: Mapping[str, Sequence[PublishedScore | None]] = {
    model: [PublishedScore(each) if isinstance(each, float) else each for each in scores]
    for model, scores in PUBLISHED.items()
}
"""By published model, in the order of `COLUMNS`; None where none is published."""

MARK: dict[str, Any] = {"fmt": "o", "markersize": 4.5, "capsize": 2.5, "elinewidth": 1}


def standard_error(column: str, score: PublishedScore) -> float:
    """Of a published percentage, as of a share of the set's rows."""
    share = score.value / 100
    return 100 * math.sqrt(share * (1 - share) / (score.items or ITEMS[column]))


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


def table_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """The lecture's table as a picture: published figures as marks, measured ones below them.

    Bars are standard errors.
    """
    from matplotlib.figure import Figure

    ours = [(each.model, found) for each in evaluations if (found := measured(each))]
    names = [*SCORES, *(name for name, _ in ours)]
    figure = Figure(figsize=(10, 1.2 + 0.27 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    for panel, column in zip(panels, COLUMNS, strict=True):
        _draw_published(panel, column)
        for row, (_, figures) in enumerate(ours, len(SCORES)):
            if column in figures:
                value, error = figures[column]
                spread = None if math.isnan(error) else error
                panel.errorbar(value, row, xerr=spread, color=VERMILION, **MARK)
        panel.set_title(TITLES[column], fontsize=9)
        panel.set_xlim(0, 100)
        panel.grid(alpha=0.3)
        panel.set_yticks(range(len(names)), [Path(name).name for name in names], fontsize=8)
    panels[0].invert_yaxis()
    red = "; red: measured here" if ours else ""
    figure.supxlabel(
        f"% right, with one standard error{red}; hollow: another protocol than the column's",
        fontsize=9,
    )
    return figure


def _draw_published(panel: Axes, column: str) -> None:
    for row, (name, scores) in enumerate(SCORES.items()):
        score = scores[COLUMNS.index(column)]
        if score is not None:
            panel.errorbar(
                score.value, row, xerr=standard_error(column, score),
                color=GREY if name.startswith("deepseek") else BLUE,
                markerfacecolor="none" if score.protocol else None, **MARK,
            )  # fmt: skip


def plot_table(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write `table_figure`. UserError for a path that cannot be written."""
    save(table_figure(evaluations), path)
