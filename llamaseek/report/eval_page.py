"""An evaluation as one self-contained HTML page: figures, the lecture's table, differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llamaseek import __version__
from llamaseek.evals.published import (
    COLUMNS,
    SCORES,
    TITLES,
    measured,
    standard_error,
    table_figure,
)
from llamaseek.evals.run import Evaluation
from llamaseek.evals.table import HEADERS, differences, rows
from llamaseek.files import write_text
from llamaseek.report.page import templates
from llamaseek.report.plots import STYLE, as_svg, plt


def write_eval_page(evaluations: Sequence[Evaluation], folder: Path) -> Path:
    """Write `report.html` and return its path. UserError where it cannot be written."""
    path = folder / "report.html"
    write_text(path, render_eval_page(evaluations))
    return path


def render_eval_page(evaluations: Sequence[Evaluation]) -> str:
    """The page of one or several models; differences are those from the first."""
    first, *others = evaluations
    return templates().get_template("eval.html.j2").render(
        headers=HEADERS,
        models=[(e.model, [row.cells() for row in rows(e)], _unjudged(e)) for e in evaluations],
        pairs=[(other.model, differences(first, other)) for other in others],
        first=first.model,
        picture=Markup(_picture(evaluations)),
        columns=[TITLES[column].replace("\n", " ") for column in COLUMNS],
        published=[(name, _published(name)) for name in SCORES],
        measured=[(e.model, _measured(e)) for e in evaluations],
        version=__version__,
    )  # fmt: skip


def _picture(evaluations: Sequence[Evaluation]) -> str:
    """The lecture's table in the colors of the page."""
    with plt.rc_context(STYLE):
        figure = table_figure(evaluations)
        figure.set_layout_engine("tight")
        return as_svg(figure)


def _unjudged(evaluation: Evaluation) -> dict[str, int]:
    found: dict[str, int] = evaluation.results["warnings"]["unjudged"]
    return found


def _published(name: str) -> list[dict[str, Any] | None]:
    """The cells of a published model."""
    return [
        score
        and {"value": f"{score.value:.1f}", "error": f"{standard_error(column, score):.1f}",
             "note": score.protocol}
        for column, score in zip(COLUMNS, SCORES[name], strict=True)
    ]  # fmt: skip


def _measured(evaluation: Evaluation) -> list[dict[str, Any] | None]:
    """The cells of a model that was measured."""
    found = measured(evaluation)
    return [
        {"value": f"{found[column][0]:.1f}", "error": f"{found[column][1]:.1f}", "note": ""}
        if column in found
        else None
        for column in COLUMNS
    ]
