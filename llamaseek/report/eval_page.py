"""An evaluation as one self-contained HTML page: figures, the lecture's table, differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
        measured=[(e.model, _measured(e)) for e in evaluations if measured(e)],
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


def _published(name: str) -> list[dict[str, str]]:
    """The cells of a published model; empty ones where nothing is published."""
    return [
        {} if score is None else _cell(score.value, standard_error(column, score), score.protocol)
        for column, score in zip(COLUMNS, SCORES[name], strict=True)
    ]


def _measured(evaluation: Evaluation) -> list[dict[str, str]]:
    """The cells of a model that was measured."""
    found = measured(evaluation)
    return [_cell(*found[column]) if column in found else {} for column in COLUMNS]


def _cell(value: float, error: float, note: str = "") -> dict[str, str]:
    return {"value": f"{value:.1f}", "error": f"{error:.1f}", "note": note}
