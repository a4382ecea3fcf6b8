"""A picture of a layout: the mesh of ranks, and how much of a layer's tensors a rank holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llamaseek.errors import UserError, bad_value
from llamaseek.parallel.dry_run import Report, Setting

# Okabe and Ito's palette, told apart with every kind of colour vision.
COLOURS = {
    "pipeline": "#CC79A7",
    "data": "#999999",
    "shard": "#009E73",
    "context": "#56B4E9",
    "tensor": "#0072B2",
    "expert": "#D55E00",
}
FORMATS = (".png", ".svg", ".pdf")
MOST = 16  # squares drawn along a dimension; longer ones are cut short


def draw_layout(setting: Setting, reports: list[Report], path: Path) -> None:
    """Write the picture; UserError for another ending or a bad path."""
    if path.suffix not in FORMATS:
        raise bad_value("draw", str(path), "a name that ends in .png, .svg or .pdf")
    style: Any = {"font.size": 8}
    partial = path.with_name(path.name + ".partial")
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
        _mesh(left, setting)
        _tensors(right, reports[min(1, len(reports) - 1)])
        try:
            figure.savefig(partial, dpi=150, format=path.suffix[1:])
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None


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
        axis.add_patch(Rectangle((0, -row), 1, 0.7, fill=False, edgecolor="#999999"))
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
