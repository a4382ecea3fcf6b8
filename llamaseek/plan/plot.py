"""Memory of the fullest GPU, stacked by part, against the number of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llamaseek.errors import UserError
from llamaseek.pictures import BLUE, GREEN, PURPLE, SKY, VERMILION, YELLOW, check_format, save
from llamaseek.plan.memory import Memory
from llamaseek.plan.planner import Planner
from llamaseek.plan.question import Question
from llamaseek.plan.text import title
from llamaseek.units import GIGA, size

# Light and dark alternate.
COLORS = {
    "weights": BLUE,
    "gradients": YELLOW,
    "optimizer": VERMILION,
    "activations": SKY,
    "cache": GREEN,
    "working": PURPLE,
}
LABELS = {"working": "working memory"}


def draw(question: Question, answer: dict[str, Any], path: Path) -> None:
    """Write the plot; UserError for another ending, a plan without a model, or a bad path."""
    check_format("plot", path)
    if question.config is None:
        raise UserError("plot: needs a model; --params alone has no layout to draw")
    planner = Planner(question)
    bars = {gpus: smallest_memory(planner, gpus) for gpus in gpu_counts(answer)}
    found = {gpus: memory for gpus, memory in bars.items() if memory is not None}
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axis = figure.subplots()
        _bars(axis, found, question.gpu.memory)
        _limits(axis, question, planner.usable, answer)
        save(figure, path)


def gpu_counts(answer: dict[str, Any]) -> list[int]:
    """The numbers of GPUs worth a bar: from a quarter of what is needed to eight times that."""
    needed = answer["gpus_for_task"]
    around = [needed // 4, needed // 2, needed, 2 * needed, 4 * needed, 8 * needed]
    return sorted({gpus for gpus in (*around, answer["gpus"]) if gpus > 0})


def smallest_memory(planner: Planner, gpus: int) -> Memory | None:
    """The least that the fullest of `gpus` has to hold, over all layouts; None without one."""
    memories = (planner.memory(layout) for layout in planner.layouts(gpus))
    return min(memories, key=lambda memory: memory.total, default=None)


def _bars(axis: Axes, found: dict[int, Memory], memory: float) -> None:
    top = 1.6 * memory / GIGA
    places = range(len(found))
    below = [0.0] * len(found)
    for part, color in COLORS.items():
        heights = [memory_.to_dict()[part] / GIGA for memory_ in found.values()]
        if any(heights):
            label = LABELS.get(part, part)
            axis.bar(places, heights, 0.7, below, color=color, label=label)
            below = [low + height for low, height in zip(below, heights, strict=True)]
    for place, height in zip(places, below, strict=True):
        # A bar that leaves the picture says at its edge how high it is.
        text, at = size(height * GIGA) + (" ↑" if height > top else ""), min(height, 0.94 * top)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
        style = {"ha": "center", "va": "bottom", "bbox": box, "textcoords": "offset points"}
        axis.annotate(text, (place, at), (0, 3), **style)  # type: ignore[arg-type]
    axis.set_xticks(list(places), [f"{gpus:,}" for gpus in found])
    axis.set_ylim(0, top)


def _limits(axis: Axes, question: Question, usable: float, answer: dict[str, Any]) -> None:
    gpu = question.gpu
    axis.axhline(gpu.memory / GIGA, color="black", linewidth=1)
    axis.axhline(usable / GIGA, color="black", linewidth=1, linestyle=(0, (4, 3)))
    right = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "left"}
    for height in (gpu.memory, usable):
        text = f"{height / GIGA:.0f} GB" + ("\nat most" if height == usable else "")
        axis.annotate(text, (1.0, height / GIGA), (4, 0), va="center", **right)  # type: ignore[arg-type]
    enough = answer["gpus_for_task"]
    kind = gpu.title if gpu.name == "cpu" else f"{gpu.title} GPUs"
    axis.set_xlabel(f"{kind} ({enough:,} {'is' if enough == 1 else 'are'} enough)")
    axis.set_ylabel("GB on the fullest GPU")
    axis.set_title(f"{title(answer)}\nthe layout that needs least memory", loc="left", fontsize=9)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="upper right", frameon=False)
