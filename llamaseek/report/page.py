"""The report as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llamaseek import __version__
from llamaseek.files import write_text
from llamaseek.recipe.stages import STAGES as RECIPE_STAGES
from llamaseek.report.model import Figure, Report, StageReport, read_report
from llamaseek.report.plots import charts, expert_bars
from llamaseek.train.best import RESTORED
from llamaseek.units import count


def templates() -> Environment:
    """Where the pages' templates are; whatever is put into them is escaped."""
    environment = Environment(
        loader=PackageLoader("llamaseek.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = _value
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    return environment


def render_page(report: Report) -> str:
    """The whole page."""
    stages = [_view(stage) for stage in report.stages]
    page = templates().get_template("page.html.j2")
    return page.render(report=report, stages=stages, version=__version__)


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Raises `UserError` where the folder holds no run or cannot be written.
    """
    page = render_page(read_report(folder))
    path = folder / "report.html"
    write_text(path, page)
    return path


def _value(figure: Figure, number: float | None) -> str:
    """A number of a figure as people read it."""
    if number is None:
        return "–"
    return f"{number:.1%}" if figure.share else f"{number:.3f}"


def _view(stage: StageReport) -> dict[str, Any]:
    """A stage with its plots and the few numbers beside its title."""
    sampled = RECIPE_STAGES[stage.recipe.stage].rollouts
    during = [line for line in stage.evaluations if RESTORED not in line]
    drawn = charts(stage.steps, during, sampled) if stage.steps else []
    drawn += expert_bars(stage.expert_load or [])
    shown = [(chart.title, Markup(chart.svg), chart.meaning) for chart in drawn]
    return {"stage": stage, "charts": shown, "numbers": _numbers(stage)}


def _numbers(stage: StageReport) -> list[tuple[str, str]]:
    numbers = []
    if stage.steps:
        last = stage.steps[-1]
        numbers += [("steps", f"{last['step']:,}"), ("tokens", count(last["tokens"]))]
        rates = sorted(line["tokens_per_second"] for line in stage.steps)
        numbers.append(("tokens a second", f"{rates[len(rates) // 2]:,.0f}"))
    if stage.evaluations:
        tested = stage.evaluations[-1]
        if RESTORED in tested:
            numbers.append(("weights of step", f"{tested[RESTORED]:,}"))
        if "val_loss" in tested:
            numbers.append(("held-out loss", f"{tested['val_loss']:.3f}"))
        for name in ("reward", "accuracy", "margin"):
            if f"val_{name}" in tested:
                numbers.append((f"held-out {name}", f"{tested[f'val_{name}']:.3f}"))
        if "val_bits_per_byte" in tested:
            numbers.append(("bits per byte", f"{tested['val_bits_per_byte']:.3f}"))
    return numbers
