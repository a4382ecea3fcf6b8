"""`report`: the page of a run, made again from its folder."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    folder: Path = typer.Argument(help="A run folder, or a quickstart's."),
) -> None:
    """Write report.html into a run folder: curves, before and after, commands."""
    from llamaseek.report.page import write_report

    print(write_report(folder))
