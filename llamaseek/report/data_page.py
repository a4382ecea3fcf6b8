"""What a cleaning run did, as one self-contained HTML page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llamaseek import __version__
from llamaseek.errors import UserError
from llamaseek.files import write_text
from llamaseek.report.page import templates
from llamaseek.report.plots import length_bars

DUPLICATES = {
    "url_dedup": "older fetches of a page",
    "exact_dedup": "texts that were there before",
    "minhash": "near duplicates",
    "line_dedup": "documents with lines seen too often",
}
"""The stages that look for duplicates, and what they find."""


@dataclass(frozen=True)
class Rule:
    """A threshold that documents failed, with some of them."""

    name: str
    count: int
    examples: list[dict[str, str]]


@dataclass(frozen=True)
class StageView:
    """One stage of the run: what came in, what it changed, what left by which rule."""

    name: str
    entered: int
    changed: int
    removed: int
    rules: list[Rule]

    @property
    def share(self) -> float:
        """Of the documents that came in, those that left."""
        return self.removed / max(self.entered, 1)


def write_data_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a cleaning run and return its path.

    Raises `UserError` where the folder holds no finished run.
    """
    try:
        stats = json.loads((folder / "stats.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder}: holds no finished cleaning run (no stats.json)") from None
    path = folder / "report.html"
    write_text(path, render_data_page(folder.name, stats, _judged(folder)))
    return path


def render_data_page(name: str, stats: dict[str, Any], judged: dict[str, Any] | None = None) -> str:
    """The page; text of documents is escaped."""
    stages = stage_views(stats)
    read = sum(stats["read"].values())
    kept = sum(source["documents"] for source in stats["kept"].values())
    characters = sum(source["characters"] for source in stats["kept"].values())
    facts = [
        ("documents read", f"{read:,}"),
        ("kept", f"{kept:,} ({kept / max(read, 1):.1%})"),
        ("characters kept", f"{characters:,}"),
    ]
    return templates().get_template("data.html.j2").render(
        name=name,
        facts=facts,
        stages=stages,
        lengths=Markup(length_bars(*(stats["lengths"].get(w, {}) for w in ("before", "after")))),
        sources=_sources(stats, characters),
        languages=_shares(stats["languages"]),
        duplicates=_duplicates(stages, read),
        judged=judged,
        version=__version__,
    )  # fmt: skip


def stage_views(stats: dict[str, Any]) -> list[StageView]:
    """The stages in the order of the run; of each the rules, the busiest first."""
    found = []
    for name in stats["stages"]:
        counts = stats["removed"].get(name, {})
        rules = [
            Rule(rule, count, stats["examples"].get(f"{name}: {rule}", []))
            for rule, count in sorted(counts.items(), key=lambda item: -item[1])
        ]
        entered, changed = (stats[kind].get(name, 0) for kind in ("entered", "changed"))
        found.append(StageView(name, entered, changed, sum(counts.values()), rules))
    return found


def _sources(stats: dict[str, Any], characters: int) -> list[tuple[str, int, int, float]]:
    """Name, documents read, documents kept, share of the characters kept."""
    nothing = {"documents": 0, "characters": 0}
    found = []
    for name, read in stats["read"].items():
        kept = stats["kept"].get(name, nothing)
        found.append((name, read, kept["documents"], kept["characters"] / max(characters, 1)))
    return found


def _shares(counts: dict[str, int]) -> list[tuple[str, int, float]]:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [(name, count, count / total) for name, count in ordered]


def _duplicates(stages: list[StageView], read: int) -> list[tuple[str, int, float]]:
    rows = []
    for stage in stages:
        if stage.name in DUPLICATES:
            count = stage.removed + (stage.changed if stage.name == "line_dedup" else 0)
            rows.append((DUPLICATES[stage.name], count, count / max(read, 1)))
    return rows


def _judged(folder: Path) -> dict[str, Any] | None:
    """What a quality filter's own folder says, where the run made one."""
    path = folder / "classifier" / "agreement.json"
    return json.loads(path.read_text()) if path.is_file() else None
