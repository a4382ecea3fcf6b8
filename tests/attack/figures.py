"""What a campaign found, and the table of it in docs/security.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- figures of make attack -->\n", "<!-- end of figures -->\n"
HEAD = "| campaign | what was tried | what was seen | promise | kept |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Figure:
    """One row: `tried` says what and how often, `seen` is the worst of it."""

    tried: str
    seen: str
    promise: str
    kept: bool


def row(campaign: str, figure: Figure) -> str:
    """The row as Markdown."""
    kept = "yes" if figure.kept else "**no**"
    return f"| {campaign} | {figure.tried} | {figure.seen} | {figure.promise} | {kept} |\n"


def renew(text: str, campaign: str, figures: Sequence[Figure], order: Sequence[str]) -> str:
    """The page with a campaign's rows in place of its old ones; campaigns keep their order."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = [line + "\n" for line in table.removeprefix(HEAD).splitlines() if line.strip()]
    kept = [line for line in rows if not line.startswith(f"| {campaign} |")]
    rows = kept + [row(campaign, figure) for figure in figures]
    rows.sort(key=lambda line: order.index(line.split(" | ")[0].removeprefix("| ")))
    return before + BEGIN + HEAD + "".join(rows) + END + after
