"""A picture of a layout: the mesh of ranks, and how much of a layer's tensors a rank holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llamaseek.parallel.dry_run import Report, Setting
from llamaseek.pictures import BLUE, GREEN, GREY, PURPLE, SKY, VERMILION, check_format, save

COLOURS = {
    "pipeline": PURPLE,
    "data": GREY,
    "shard": GREEN,
    "context": SKY,
    "tensor": BLUE,
    "expert": VERMILION,
}
MOST = 16  # squares drawn along a dimension; longer ones are cut short


def draw_layout(setting: Setting, reports: list[Report], path: Path) -> None:
    """Write the picture; UserError for another ending or a bad path."""
    check_format("draw", path)
    style: Any = {"font.size": 8}
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
        _mesh(left, setting)
        _tensors(right, reports[min(1, len(reports) - 1)])
        save(figure, path)


def _mesh(axis: Axes, setting: Setting) -> None:
    """A row of squares for each dimension wider than one; the filled one is rank 0's place."""
    sizes = {name: size for name, size in setting.layout.to_dict().items() if size > 1}
    for row, (name, size) in enumerate(sizes.items()):
        for place in range(min(size, MOST)):
            colour = COLOURS[name]
            box = Rectangle((place, -row), 0.8, 0.6, edgecolor=colour, facecolor=colour, alpha=1.0)
            box.set_fill(place == 0)
            axis.add_patch(box)
        more = " …" if size > MOST else ""
        axis.text(-0.4, -row + 0.3, f"{name} {size}", ha="right", va="center")
        axis.text(min(size, MOST) + 0.1, -row + 0.3, more, va="center")
    axis.set_xlim(-6, MOST + 1.5)
    axis.set_ylim(-len(sizes) + 0.2, 1.2)
    axis.set_axis_off()
    note = "; expert divides data × shard" if setting.layout.expert > 1 else ""
    axis.set_title(f"{setting.layout.gpus:,} ranks{note}", loc="left")


def _tensors(axis: Axes, report: Report) -> None:
    """Bars of whole tensors of one layer, the part that a rank holds filled."""
    for row, tensor in enumerate(report.tensors):
        axis.add_patch(Rectangle((0, -row), 1, 0.7, fill=False, edgecolor=GREY))
        colour = COLOURS[tensor.dims[-1]] if tensor.dims else "#444444"
        width = tensor.held / tensor.whole
        axis.add_patch(Rectangle((0, -row), max(width, 0.004), 0.7, color=colour))
        axis.text(-0.02, -row + 0.35, tensor.name, ha="right", va="center")
        how = ", ".join(tensor.dims) or "whole"
        axis.text(
            1.02, -row + 0.35, f"{tensor.held / 1e6:,.3g}M of {tensor.whole / 1e6:,.4g}M: {how}"
        )
    axis.set_xlim(-0.75, 1.75)
    axis.set_ylim(-len(report.tensors) + 0.2, 1.2)
    axis.set_axis_off()
    layer = report.parts[0].layers[0] if report.parts[0].layers else 0
    axis.set_title(f"layer {layer} on rank {report.rank:,}: numbers held", loc="left")
