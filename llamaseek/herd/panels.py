"""What a diagram of an architecture is made of: boxes in rows, rows in panels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """One operation. `kind` picks its color: linear, norm, op, cache or part."""

    title: str
    detail: str = ""
    kind: str = "op"


Row = tuple[Box | None, ...]
"""Boxes side by side; None lets the line from below pass."""


@dataclass(frozen=True)
class Panel:
    """Rows from the bottom up, each fed by the one below. `looped` are the rows of one layer.

    `residuals` are spans (first, last) of rows around which the input is carried to be added.
    """

    title: str
    rows: tuple[Row, ...]
    looped: tuple[int, int] | None = None
    loop_label: str = ""
    residuals: tuple[tuple[int, int], ...] = ()


def gated_panel(inner: int) -> Panel:
    """SwiGLU of inner width `inner` (Shazeer 2020)."""
    rows: tuple[Row, ...] = (
        (Box("hidden"),),
        (Box("gate_proj", f"→ {inner:,}", "linear"), Box("up_proj", f"→ {inner:,}", "linear")),
        (Box("SiLU"), None),
        (Box("×", "element by element"),),
        (Box("down_proj", f"{inner:,} →", "linear"),),
    )
    return Panel("Feed-forward (SwiGLU)", rows)
