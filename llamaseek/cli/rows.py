"""Tables of a cleaning run, and training rows in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamaseek.recipe import Recipe

if TYPE_CHECKING:
    from llamaseek.train.rows import ShownRow


def print_stages(folder: Path) -> None:
    """A line a stage: what came in, what left and by which rule most."""
    from llamaseek.report.data_page import stage_views

    stats = json.loads((folder / "stats.json").read_text())
    table = Table("stage", "came in", "left", "changed", "most often")
    for column in table.columns[1:4]:
        column.justify = "right"
    for stage in stage_views(stats):
        most = stage.rules[0] if stage.rules else None
        numbers = (f"{n:,}" for n in (stage.entered, stage.removed, stage.changed))
        table.add_row(stage.name, *numbers, f"{most.name} ({most.count:,})" if most else "")
    Console().print(table)
    read = sum(stats["read"].values())
    kept = sum(source["documents"] for source in stats["kept"].values())
    print(f"kept {kept:,} of {read:,} documents ({kept / max(read, 1):.1%})")


def print_rows(console: Console, rows: Iterable[ShownRow], recipe: Recipe) -> None:
    """Each row with its documents; dimmed what has no loss, and how much that is."""
    for number, row in enumerate(rows):
        learnt = f"{row.learnt} of {row.tokens} tokens learnt"
        padded = f", {row.padding} padding" if row.padding else ""
        count = f"{len(row.documents)} document{'s' if len(row.documents) > 1 else ''}"
        title = f"row {number}: {count}, {learnt}{padded} ({recipe.data.length} a row)"
        console.rule(title, align="left", characters="─")
        for document in row.documents:
            text = Text()
            for stretch in document:
                text.append(stretch.text, style="" if stretch.learnt else "dim")
            console.print(text)
            console.print()
        for column, value in (row.judged or {}).items():
            console.print(f"{column}: {value}", markup=False)
    for line in row_notes(recipe):
        console.print(line, style="dim")


def row_notes(recipe: Recipe) -> list[str]:
    """What the dimming means in this recipe."""
    if recipe.stage == "pretrain":
        return ["Dimmed: a document's first token, which nothing predicts."]
    if recipe.stage == "reward":
        return ["Best answer first. Dimmed: all but each answer's last token, where its score is."]
    if recipe.sampling is not None or recipe.stage in ("grpo", "ppo"):
        return ["Prompts: a model answers them during the run; below each, what judges the answer."]
    return ["Dimmed: read by the model, but without a loss."]
