"""Curves and bars as SVG that takes the page's text color, so they suit light and dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from llamaseek.train.progress import all_equal  # noqa: E402

INK = "#010203"  # stands for the page's text color until the SVG is written
MAIN, SECOND = "#3b82f6", "#f59e0b"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llamaseek",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Chart:
    """One drawing with its title and what it shows, in a sentence."""

    title: str
    svg: str
    meaning: str


Lines = Sequence[dict[str, Any]]
LOSS = (
    "loss",
    "What training lowers, a step at a time. The axis shows the last nine tenths of the run.",
)
MEANINGS = {
    "reward": ("reward", "The mean reward of the answers; more is better."),
    "accuracy": ("accuracy", "The share of items that come out right."),
    "margin": (
        "margin",
        "By how much the better answer is ahead of the worse one; it should grow.",
    ),
    "kl": (
        "KL to the reference (nats)",
        "How far the model has moved from where it began; a sudden rise is a warning.",
    ),
    "entropy": (
        "entropy (nats a token)",
        "How undecided the model is about the next token; near 0 it always says the same.",
    ),
    "clip_fraction": (
        "share of tokens clipped",
        "Tokens whose probability moved further in a step than is allowed.",
    ),
    "length": ("answer length (tokens)", "How long the answers are."),
    "no_signal": (
        "groups without signal",
        "Prompts whose answers all have the same reward, from which the model learns nothing.",
    ),
    "explained_variance": (
        "variance explained by the values",
        "How well the value head predicts the reward; 1 is perfectly.",
    ),
}
"""Figures of post-training by their names in the metrics: title and meaning."""

PACE = (
    ("lr", "learning rate", "How large the steps are: a warm-up, then a decay."),
    ("tokens_per_second", "tokens a second", "How fast the run was; a dip is the machine's."),
)
GREEDY = "Of the likeliest answers to held-out prompts, not of sampled ones."


def charts(steps: Lines, tested: Lines, sampled: bool = False) -> list[Chart]:
    """Every curve of a run. Training and held-out values stand together where they are the same
    quantity: not where training values are of `sampled` answers.
    """
    terms = [name for name in steps[0] if name.startswith("loss/")]
    found = [_chart(steps, tested, "loss", *LOSS, last_part=True)]
    for name in terms if len(terms) > 1 else []:
        term = name.removeprefix("loss/").replace("_", " ")
        meaning = f"The part of the loss called {term}, before its weight."
        found.append(_chart(steps, tested, name, f"loss: {term}", meaning, last_part=True))
    steps = [_without_ties(line) for line in steps]
    tested = [_without_ties(line, "val_") for line in tested]
    for name, (title, meaning) in MEANINGS.items():
        if any(name in line for line in steps):
            found.append(_chart(steps, () if sampled else tested, name, title, meaning))
        if sampled and any(f"val_{name}" in line for line in tested):
            found.append(_chart((), tested, name, f"held-out {title}", GREEDY))
    return [*found, *(_chart(steps, (), *pace) for pace in PACE)]


def _without_ties(line: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A line of metrics without the accuracy of pairs that are all equal."""
    left_out = f"{prefix}accuracy" if all_equal(line, prefix) else None
    return {name: value for name, value in line.items() if name != left_out}


def _chart(
    steps: Lines, tested: Lines, name: str, title: str, meaning: str, last_part: bool = False
) -> Chart:
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.0, 2.4))
        at, values = _column(steps, name)
        if values:
            axis.plot(at, values, color=MAIN, alpha=0.25, linewidth=0.8)
            axis.plot(at, smooth(values), color=MAIN, linewidth=1.4, label="training")
        places, scores = _column(tested, f"val_{name}")
        if scores:
            style: Any = {"color": SECOND, "marker": "o", "markersize": 3, "linewidth": 1.2}
            axis.plot(places, scores, label="held out", **style)
            axis.legend(loc="best")
        if last_part and values:
            axis.set_ylim(*_last_part(at, smooth(values), places, scores))
        axis.set_xlabel("step")
        axis.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        return Chart(title, as_svg(figure), meaning)


def _column(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that have a figure."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def _last_part(
    at: Sequence[float], values: Sequence[float], places: Sequence[float], scores: Sequence[float]
) -> tuple[float, float]:
    """The range of both curves after the first tenth, with a margin."""
    begin = at[-1] / 10
    both = [*zip(at, values, strict=True), *zip(places, scores, strict=True)]
    shown = [value for step, value in both if step >= begin]
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low) or 0.1
    return low - margin, high + margin


def expert_bars(loads: Sequence[Sequence[float]]) -> list[Chart]:
    """Load of every expert over the mean load, one chart a mixture-of-experts layer."""
    found = []
    for number, load in enumerate(loads, 1):
        with plt.rc_context(STYLE):
            figure, axis = plt.subplots(figsize=(5.0, 2.0))
            axis.bar(range(len(load)), load, color=MAIN, width=0.75)
            axis.axhline(1, color=SECOND, linewidth=1.2)
            axis.set_xlabel(f"expert; busiest {max(load):.2f} × mean")
            axis.set_xticks([])
            meaning = "Tokens that each expert computed, as a multiple of the mean."
            found.append(Chart(f"expert load, MoE layer {number}", as_svg(figure), meaning))
    return found


def length_bars(before: dict[str, int], after: dict[str, int]) -> str:
    """Documents by length, each bar twice as long as the one before; in and out side by side."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(10.5, 2.4))
        powers = sorted(map(int, {*before, *after}))
        places = range(powers[0], powers[-1] + 1) if powers else range(0)
        for shift, counts, color, name in (
            (-0.2, before, SECOND, "read"),
            (0.2, after, MAIN, "kept"),
        ):
            heights = [counts.get(str(power), 0) for power in places]
            axis.bar([power + shift for power in places], heights, 0.4, color=color, label=name)
        axis.set_xticks(list(places), [f"{2**power:,}" for power in places])
        axis.set_xlabel("characters, at least")
        axis.set_title("documents by length")
        axis.legend(loc="upper right")
        return as_svg(figure)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average over a fortieth of the run, without a lag at the start."""
    keep = 1 - 1 / max(len(values) / 40, 1)
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def as_svg(figure: Figure) -> str:
    """The figure as an inline SVG element; closes the figure."""
    text = io.StringIO()
    figure.tight_layout()
    figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
    plt.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
