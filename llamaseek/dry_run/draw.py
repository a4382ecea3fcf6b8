"""A picture of a layout: a rank's place in the mesh, and how much of a layer it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llamaseek.dry_run.rank import RankReport, Setting
from llamaseek.parallel.mesh import DIMS
from llamaseek.pictures import BLUE, GREEN, GREY, PURPLE, SKY, VERMILION, save
from llamaseek.plan.layout import Layout
from llamaseek.units import count

COLORS = {
    "pipeline": PURPLE,
    "data": GREY,
    "shard": GREEN,
    "context": SKY,
    "tensor": BLUE,
    "expert": VERMILION,
}
MOST = 16  # squares drawn along a dimension; longer ones are cut short
BAR = 2**17  # numbers from which on a tensor is drawn; norms are not


def draw_layout(setting: Setting, reports: list[RankReport], path: Path) -> None:
    """Write the picture; UserError where it cannot be."""
    style: Any = {"font.size": 8}
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
        middle = reports[min(1, len(reports) - 1)]
        _mesh(left, setting, middle.rank)
        _tensors(right, setting, middle)
        save(figure, path)


def _mesh(axis: Axes, setting: Setting, rank: int) -> None:
    """A row of squares for each dimension wider than one; the filled one is the rank's place."""
    rows = list(_places(setting.layout, rank))
    for row, (name, size, place) in enumerate(rows):
        shown = min(size, MOST)
        for square in range(shown):
            box = Rectangle((square, -row), 0.8, 0.6, edgecolor=COLORS[name])
            box.set_facecolor(COLORS[name] if square == min(place, shown - 1) else "none")
            axis.add_patch(box)
        more = " …" if size > MOST else ""
        axis.text(-0.4, -row + 0.3, f"{name} {size}", ha="right", va="center")
        axis.text(shown, -row + 0.3, more, va="center")
    axis.set_xlim(-6, MOST + 3)
    axis.set_ylim(-max(len(rows), 4) + 0.2, 1.2)
    axis.set_axis_off()
    axis.set_title(f"{setting.layout.gpus:,} ranks; filled: the place of rank {rank:,}", loc="left")


def _places(layout: Layout, rank: int) -> Iterator[tuple[str, int, int]]:
    """Dimensions from the outermost to neighbors, their sizes, and the rank's place in each."""
    inner = layout.gpus
    for name in DIMS:
        size = getattr(layout, name)
        inner //= size
        if size > 1:
            yield name, size, rank // inner % size
    if layout.expert > 1:
        yield "expert", layout.expert, rank // (layout.tensor * layout.context) % layout.expert


def _tensors(axis: Axes, setting: Setting, report: RankReport) -> None:
    """Bars of one layer's matrices, the part that a rank holds filled."""
    matrices = [tensor for tensor in report.tensors if tensor.whole > BAR]
    for row, tensor in enumerate(matrices):
        dims = [dim for dim in tensor.dims if getattr(setting.layout, dim) > 1]
        axis.add_patch(Rectangle((0, -row), 1, 0.7, fill=False, edgecolor=GREY))
        color = COLORS[dims[0]] if dims else "#444444"
        width = tensor.held / tensor.whole
        axis.add_patch(Rectangle((0, -row), max(width, 0.004), 0.7, color=color))
        axis.text(-0.02, -row + 0.35, tensor.name, ha="right", va="center")
        how = f"{count(tensor.held)} of {count(tensor.whole)}, by {' and '.join(dims)}"
        text = how if dims else f"{count(tensor.whole)}, whole"
        axis.text(1.02, -row + 0.35, text, va="center")
    axis.set_xlim(-0.8, 1.9)
    axis.set_ylim(-len(matrices) + 0.2, 1.2)
    axis.set_axis_off()
    layer = next((layer for part in report.parts for layer in part.layers), 0)
    axis.set_title(f"what it holds of the matrices of layer {layer}", loc="left")
