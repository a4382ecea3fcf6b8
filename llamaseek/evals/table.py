"""An evaluation as rows to read: value, standard error, items, chance, shots, filter, warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamaseek.evals.protocols import CHANCES
from llamaseek.evals.run import Evaluation

HEADERS = (
    "task", "metric", "value", "± s.e.", "n", "chance", "shots", "filter", "overlap", "warnings",
)  # fmt: skip
WITH_PARTS = ("core", "needle", "needles")
"""Groups of which each part is shown too; their own figures are means over the parts."""
WARNINGS = {"cut_prompts": "prompts cut", "at_limit": "answers at the length limit"}


@dataclass(frozen=True)
class Row:
    """One figure of a task or group. `error` is its standard error, NaN where there is none."""

    task: str
    metric: str
    filter: str
    value: float
    error: float
    items: int
    chance: float | None
    shots: int | None
    warnings: str = ""
    overlap: float | None = None

    def cells(self) -> list[str]:
        """Its texts, in the order of `HEADERS`."""
        error = "" if math.isnan(self.error) else f"{self.error:.4f}"
        chance = "" if self.chance is None else f"{self.chance:.2f}"
        shots = "" if self.shots is None else str(self.shots)
        return [
            self.task, self.metric, f"{self.value:.4f}", error, str(self.items), chance, shots,
            "" if self.filter == "none" else self.filter,
            "" if self.overlap is None else f"{self.overlap:.1%}", self.warnings,
        ]  # fmt: skip


def rows(evaluation: Evaluation) -> list[Row]:
    """All figures of an evaluation: of tasks, and of groups, with macro averages, as a whole."""
    results = evaluation.results
    children: Mapping[str, Sequence[str]] = results.get("group_subtasks") or {}
    below = {each for name, names in children.items() if name not in WITH_PARTS for each in names}
    found = []
    for task, figures in results["results"].items():
        if task in below:
            continue
        leaves = _leaves(task, children)
        keys = [key for key in figures if "," in key and "_stderr," not in key]
        for place, key in enumerate(keys):
            metric, filter_name = key.split(",", 1)
            warned = _warned(evaluation, leaves, filter_name, place == 0)
            found.append(
                Row(
                    task,
                    metric,
                    filter_name,
                    _number(figures[key]),
                    _number(figures.get(f"{metric}_stderr,{filter_name}")),
                    _items(figures, leaves, results),
                    _chance(evaluation, leaves, task),
                    _shots(results, leaves),
                    warned,
                    _overlap(results, leaves),
                )  # fmt: skip
            )
            if len(leaves) > 1 and task not in WITH_PARTS:
                found.append(_macro(found[-1], key, leaves, results["results"]))
    return found


def _leaves(task: str, children: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks that a group is made of, or the task itself."""
    below = children.get(task) or ()
    return [leaf for each in below for leaf in _leaves(each, children)] or [task]


def _macro(micro: Row, key: str, leaves: Sequence[str], results: Mapping[str, Any]) -> Row:
    """The mean of the tasks' values, each task alike, with its standard error.

    Meta reports this one, lm-eval the mean over items.
    """
    metric, filter_name = key.split(",", 1)
    values = [_number(results[leaf].get(key)) for leaf in leaves if leaf in results]
    errors = [_number(results[leaf].get(f"{metric}_stderr,{filter_name}")) for leaf in leaves]
    count = max(len(values), 1)
    return Row(
        micro.task, f"{metric} (macro)", filter_name, sum(values) / count,
        math.sqrt(sum(error**2 for error in errors)) / count,
        micro.items, micro.chance, micro.shots,
    )  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _items(figures: Mapping[str, Any], leaves: Sequence[str], results: Mapping[str, Any]) -> int:
    counts = results.get("n-samples") or {}
    return sum(int(counts[leaf]["effective"]) for leaf in leaves if leaf in counts)


def _shots(results: Mapping[str, Any], leaves: Sequence[str]) -> int | None:
    known = results.get("n-shot") or {}
    shots = {int(known[leaf]) for leaf in leaves if known.get(leaf) is not None}
    return shots.pop() if len(shots) == 1 else None


def _chance(evaluation: Evaluation, leaves: Sequence[str], task: str) -> float | None:
    """What guessing among the options gets, from the items where options are scored; None for free
    answers.
    """
    shares = [
        1 / len(row["arguments"])
        for leaf in leaves
        for row in evaluation.samples.get(leaf, ())
        if len(row["arguments"]) > 1
    ]
    return sum(shares) / len(shares) if shares else CHANCES.get(task)


def _overlap(results: Mapping[str, Any], leaves: Sequence[str]) -> float | None:
    """The mean share of training text in the items of the tasks, where it was looked for."""
    known = results.get("overlap") or {}
    shares = [known[leaf] for leaf in leaves if leaf in known]
    return sum(shares) / len(shares) if shares else None


def _warned(evaluation: Evaluation, leaves: Sequence[str], filter_name: str, first: bool) -> str:
    """Warnings in words: those of a filter, and with its `first` figure those of the task."""
    wanted = {f"nothing_extracted,{filter_name}": "answers with nothing extracted"}
    wanted |= WARNINGS if first else {}
    counts = {
        text: sum(evaluation.warnings.get(leaf, {}).get(key, 0) for leaf in leaves)
        for key, text in wanted.items()
    }
    return ", ".join(f"{count} {text}" for text, count in counts.items() if count)


@dataclass(frozen=True)
class Difference:
    """How a second model's figure differs from the first's on the same items."""

    task: str
    metric: str
    filter: str
    difference: float
    error: float
    items: int


def differences(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Paired differences of every metric of every task that both were asked, second minus first.

    The error is that of the mean difference over items, smaller than that of two separate means.
    """
    found = []
    for task, samples in first.samples.items():
        other = {(r["doc_id"], r["filter"]): r for r in second.samples.get(task, ())}
        pairs: dict[tuple[str, str], list[float]] = {}
        for row in samples:
            match = other.get((row["doc_id"], row["filter"]))
            if match is None:
                continue
            for metric in row["metrics"]:
                a, b = _score(row[metric]), _score(match[metric])
                pairs.setdefault((metric, row["filter"]), []).append(b - a)
        for (metric, name), values in pairs.items():
            found.append(Difference(task, metric, name, *_mean_error(values), len(values)))
    return found


def _score(value: Any) -> float:
    """An item's figure; of several instructions the share that is followed."""
    if isinstance(value, list | tuple):
        return sum(map(_score, value)) / max(len(value), 1)
    return float(value)


def _mean_error(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(spread / len(values))
