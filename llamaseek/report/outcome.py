"""What a run changed on held-out rows: figures before and after, and samples side by side.

Read from a run folder: `before.jsonl` and `after.jsonl`, and the evaluations of `metrics.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from llamaseek.evals.compare import JUDGED, Confusion, Measure, confusion, measures
from llamaseek.files import read_jsonl
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.schema import Recipe

FIGURES = {
    "val_bits_per_byte": (
        "bits per byte",
        "How many bits the model needs for a byte of held-out text; fewer is better.",
    ),
    "val_loss": (
        "loss",
        "What training lowers, on rows that were not trained on; lower is better.",
    ),
    "val_accuracy": (
        "accuracy",
        "The share of held-out items that come out right.",
    ),
    "val_reward": (
        "reward",
        "The mean reward of greedy answers to held-out prompts.",
    ),
}
"""Of evaluations: what they are called, and what they say."""

WINS = "How often a judge found the later answer better than the earlier one; 50% is a draw."
SHARES = ("val_accuracy",)
GAINED = (
    "The share of held-out pairs whose chosen answer gained more in probability than the rejected "
    "one. Before the run nothing has been gained: all pairs are equal."
)


@dataclass(frozen=True)
class Side:
    """A held-out row, and what came out for it before and after."""

    prompt: str
    wanted: str
    before: str
    after: str
    right: bool = False  # after the run


@dataclass(frozen=True)
class Outcome:
    """Figures and samples of a run."""

    title: str
    measures: list[Measure]
    samples: list[Side] = field(default_factory=list)
    confusion: Confusion | None = None


def read_outcome(folder: Path) -> Outcome:
    """The outcome of a run. Without held-out rows there are neither figures nor samples."""
    recipe = load_recipe(folder / "recipe.yaml", [])
    return outcome(recipe, read_jsonl(folder / "metrics.jsonl"), folder)


def outcome(recipe: Recipe, lines: Sequence[dict[str, Any]], folder: Path) -> Outcome:
    """The same from what was read already: the recipe and the lines of metrics."""
    before, after = (read_jsonl(folder / f"{name}.jsonl") for name in ("before", "after"))
    labels = labels_of(recipe, after)
    found = [*answer_measures(before, after, labels), *evaluated(lines, bool(labels))]
    if after and "margin" in after[0]:
        found += margin_measures(before, after)
    judged = read_jsonl(folder / JUDGED)
    if judged:
        found.append(
            Measure("win rate", 0.5, sum(one["win"] for one in judged) / len(judged), WINS)
        )
    title = f"on {len(after):,} held-out rows" if labels else "on held-out rows"
    table = confusion(after, labels) if labels else None
    return Outcome(title, found, sides(before, after), table)


def labels_of(recipe: Recipe, after: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels of a run on labelled texts."""
    if recipe.data.format != "labels":
        return []
    return sorted({str(one["wanted"]) for one in after})


def answer_measures(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], labels: list[str]
) -> list[Measure]:
    """Figures of answers; of texts that are only gone on with there are none."""
    if not after or "wanted" not in after[0] or after[0].get("text"):
        return []
    return measures(before, after, labels)


def evaluated(lines: Sequence[Mapping[str, Any]], labelled: bool) -> list[Measure]:
    """Figures of the first and the last evaluation, where the first was before any training."""
    tested = [line for line in lines if any(name.startswith("val_") for name in line)]
    if not tested or tested[0]["step"] != 0:
        return []
    first, last = tested[0], tested[-1]
    found = []
    for key, (name, meaning) in FIGURES.items():
        if key in first and key in last and not (labelled and key in SHARES):
            unknown = key in SHARES and "val_equal" in first
            before = None if unknown else first[key]
            meaning = GAINED if unknown else meaning
            found.append(Measure(name, before, last[key], meaning, share=key in SHARES))
    return found


def margin_measures(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[Measure]:
    """Of pairs: by how much and how often the chosen answer is likelier, how many changed sides."""
    first, last = ([one["margin"] for one in lines] for lines in (before, after))
    if not first or len(first) != len(last):
        return []
    margins = list(zip(first, last, strict=True))
    was_likelier, is_likelier = (mean(float(m > 0) for m in side) for side in (first, last))
    won = sum(was <= 0 < now for was, now in margins) / len(margins)
    lost = sum(was > 0 >= now for was, now in margins) / len(margins)
    return [
        Measure("chosen is likelier", was_likelier, is_likelier,
                "The share of held-out pairs whose chosen answer the model finds likelier."),
        Measure("margin (nats)", mean(first), mean(last),
                "By how much the chosen answer's log-probability is above the rejected one's, in "
                "the mean.", share=False),
        Measure("flipped to chosen", None, won,
                "The share of held-out pairs whose chosen answer was not likelier before the run, "
                f"and is now. The other way round: {lost:.1%}."),
    ]  # fmt: skip


def sides(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Side]:
    """Every row of both ends, the ones that changed sides first among pairs."""
    if len(before) != len(after):
        return []
    rows = list(zip(before, after, strict=True))
    if after and "margin" in after[0]:
        rows.sort(key=lambda row: (row[0]["margin"] > 0) == (row[1]["margin"] > 0))
        return [_pair(*row) for row in rows]
    return [_side(*row) for row in rows]


def _pair(first: Mapping[str, Any], last: Mapping[str, Any]) -> Side:
    both = f"chosen: {last['chosen']}\nrejected: {last['rejected']}"
    flipped = (first["margin"] > 0) != (last["margin"] > 0)
    moved = f"{last['margin']:+.2f} nats" + (" (flipped)" if flipped else "")
    return Side(last["prompt"], both, f"{first['margin']:+.2f} nats", moved, last["margin"] > 0)


def _side(first: Mapping[str, Any], last: Mapping[str, Any]) -> Side:
    wanted = str(last.get("wanted", ""))
    if "reward" in last:
        was, now = (f"{one['answer']}\n(reward {one['reward']:.3g})" for one in (first, last))
        return Side(last["prompt"], wanted, was, now, last["reward"] > first["reward"])
    return Side(
        last["prompt"], wanted, str(first["answer"]), str(last["answer"]), last["answer"] == wanted
    )
