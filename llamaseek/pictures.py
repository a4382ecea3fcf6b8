"""What all pictures share: a palette, the formats, and how a file is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamaseek.errors import bad_value
from llamaseek.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with every kind of color vision.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, GREY = "#E69F00", "#56B4E9", "#F0E442", "#999999"
FORMATS = (".png", ".svg", ".pdf")


def check_format(field: str, path: Path) -> None:
    """UserError for a name whose ending is no picture's."""
    if path.suffix not in FORMATS:
        raise bad_value(field, str(path), "a name that ends in .png, .svg or .pdf")


def save(figure: Figure, path: Path) -> None:
    """Write a figure beside `path`, then rename it into place; UserError for a bad path."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
