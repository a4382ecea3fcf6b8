"""Curves and bars as SVG that takes the page's text color, so they suit light and dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

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


def curves(steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> str:
    """Loss, learning rate and tokens a second over the steps of one run."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 2.5), width_ratios=(2, 1, 1))
        _loss(axes[0], steps, evaluations)
        at = [line["step"] for line in steps]
        axes[1].plot(at, [line["lr"] for line in steps], color=MAIN, linewidth=1.4)
        axes[1].set_title("learning rate")
        axes[1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        rates = smooth([line["tokens_per_second"] / 1000 for line in steps])
        axes[2].plot(at, rates, color=MAIN, linewidth=1.4)
        axes[2].set_title("thousand tokens a second")
        axes[2].set_ylim(bottom=0)
        for axis in axes:
            axis.set_xlabel("step")
            axis.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        return as_svg(figure)


def _loss(axis: Axes, steps: Sequence[dict[str, Any]], tested: Sequence[dict[str, Any]]) -> None:
    at, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
    axis.plot(at, losses, color=MAIN, alpha=0.25, linewidth=0.8)
    axis.plot(at, smooth(losses), color=MAIN, linewidth=1.4, label="training")
    _held_out(axis, tested, "val_loss")
    axis.set_title("loss (nats)")
    if min(losses) >= 0:  # a policy's loss has no floor
        axis.set_ylim(bottom=0)
    axis.legend(loc="upper right")


def _held_out(axis: Axes, tested: Sequence[dict[str, Any]], name: str) -> None:
    found = [(line["step"], line[name]) for line in tested if name in line]
    if found:
        style: Any = {"color": SECOND, "marker": "o", "markersize": 3, "linewidth": 1.2}
        axis.plot(*zip(*found, strict=True), label="held out", **style)


WATCHED = {
    "reward": "reward",
    "accuracy": "accuracy",
    "margin": "reward margin",
    "kl": "KL to the reference (nats)",
    "entropy": "entropy (nats a token)",
    "clip_fraction": "share of tokens clipped",
    "length": "answer length (tokens)",
    "no_signal": "groups without signal",
    "loss/value": "value loss",
    "explained_variance": "variance explained by the values",
}
"""What users of post-training watch, by its name in the metrics."""


def watched(steps: Sequence[dict[str, Any]], tested: Sequence[dict[str, Any]]) -> str:
    """A small plot for each of the watched figures that the run has; empty where it has none."""
    names = [name for name in WATCHED if any(name in line for line in steps)]
    if not names:
        return ""
    with plt.rc_context(STYLE):
        rows = -(-len(names) // 4)
        figure, grid = plt.subplots(rows, 4, figsize=(10.5, 2.1 * rows), squeeze=False)
        for axis in grid.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(grid.flat, names, strict=False):
            found = [(line["step"], line[name]) for line in steps if name in line]
            at, values = zip(*found, strict=True)
            axis.plot(at, values, color=MAIN, alpha=0.25, linewidth=0.8)
            axis.plot(at, smooth(values), color=MAIN, linewidth=1.4, label="training")
            _held_out(axis, tested, f"val_{name}")
            axis.set_title(WATCHED[name])
            axis.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        return as_svg(figure)


def expert_bars(loads: Sequence[Sequence[float]]) -> str:
    """Load of every expert over the mean load, one panel a mixture-of-experts layer."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(loads), figsize=(10.5, 2), squeeze=False, sharey=True)
        for number, (axis, load) in enumerate(zip(axes[0], loads, strict=True), 1):
            axis.bar(range(len(load)), load, color=MAIN, width=0.75)
            axis.axhline(1, color=SECOND, linewidth=1.2)
            axis.set_title(f"expert load, MoE layer {number}")
            axis.set_xlabel(f"expert; busiest {max(load):.2f} × mean")
            axis.set_xticks([])
        return as_svg(figure)


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
