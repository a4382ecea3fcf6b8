"""How the studies' pictures look: one style, one way to write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llamaseek.pictures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, save

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MAIN, SECOND = COLOURS[:2]
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def write_figure(path: Path, title: str, draw: Callable[[Figure], None]) -> None:
    """Let `draw` fill a figure; written beside `path` and renamed into place."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        draw(figure)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        save(figure, path)


def panel(figure: Figure, x: str, y: str) -> Axes:
    """The only axes of a figure."""
    axis = figure.subplots()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    return axis


def grouped_bars(
    axis: Axes, groups: list[str], series: dict[str, list[float]], form: str = "{:.0%}"
) -> None:
    """A group of bars for each name, one bar a series, each with its value on top."""
    width = 0.8 / len(series)
    for number, (colour, (name, values)) in enumerate(zip(COLOURS, series.items(), strict=False)):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(groups))]
        bars = axis.bar(places, values, width * 0.92, color=colour, label=name)
        axis.bar_label(bars, [form.format(value) for value in values], fontsize=7)
    axis.set_xticks(range(len(groups)), groups)
    axis.margins(y=0.15)  # room for the values under the legend
    axis.grid(False, axis="x")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(series))
