"""What docs/parallel.md says was measured is what bench/results/parallel.json holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAMILIES = ("llama3", "deepseek_v3")
STATES = [f"bytes held, {part}" for part in ("weights", "gradients", "optimizer")]


def results() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        (ROOT / "bench/results/parallel.json").read_text()
    )["rows"]  # fmt: skip
    return rows


def megabytes(rows: list[dict[str, Any]], case: str) -> list[str]:
    """States, activations and received bytes of a case as the table has them."""
    own = {(r["metric"], r["peer"]): r["value"] for r in rows if r["case"] == case}
    if not own:
        return ["", "", ""]
    states = sum(own[metric, "planner"] for metric in STATES)
    received = sum(value for (metric, _), value in own.items() if "received" in metric)
    activations = own["bytes held, activations", "planner"]
    return [f"{value / 1e6:.2f}" for value in (states, activations, received)]


def test_the_table_is_the_results() -> None:
    rows = results()
    lines = (ROOT / "docs/parallel.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| layout |")) + 2
    seen = 0
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        layout, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert cells == [x for f in FAMILIES for x in megabytes(rows, f"{f} {layout}")], layout
        seen += 1
    assert seen == len({row["case"].split(" ", 1)[1] for row in rows if "bytes" in row["metric"]})


def test_the_results_are_within_what_is_promised() -> None:
    """10% of the planner; two processes 0.9 of one with two threads; experts
    spread over ranks 1.25 times a step at most.
    """
    by = {row["peer"]: row["ratio"] for row in results()}
    assert by["one process, two threads"] >= 0.9 and 1 / by["data 2"] <= 1.25
    sizes = [row for row in results() if row["peer"] == "planner"]
    assert len(sizes) > 75
    assert all(abs(row["ratio"] - 1) <= 0.10 for row in sizes)
