"""What every benchmark shares: the row, the table, the file with machine and versions."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """One comparison; a ratio above 1 is better for us."""

    case: str
    metric: str
    value: float
    peer: str
    peer_value: float | None
    ratio: float | None
    limit_share: float | None


def row(
    case: str, metric: str, value: float, peer: str, peer_value: float | None, share: float | None
) -> Row:
    """A row whose metric is a rate, more being better."""
    ratio = round(value / peer_value, 3) if peer_value else None
    return Row(case, metric, value, peer, peer_value, ratio, share)


def median_seconds(step: Callable[[], object], warm: int = 2, repeats: int = 5) -> float:
    """The median of `repeats` timings after `warm` runs."""
    for _ in range(warm):
        step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine() -> dict[str, str | int]:
    """The machine, the versions and the commit that a result belongs to."""
    names = ("torch", "transformers", "llamaseek")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "commit": commit(),
        **{name: installed(name) or "absent" for name in names},
    }


def cpu_name() -> str:
    """The processor's own name if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def commit() -> str:
    """The short hash of the source tree, or "unknown" outside of git."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def installed(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def figure(value: float) -> str:
    """A figure of a table, with two decimals where it is small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def report(rows: list[Row], skipped: list[str], path: Path | None) -> None:
    """Print the table; write JSON where asked."""
    for r in rows:
        ratio = f"{r.ratio:.2f}x" if r.ratio else "-"
        peer_value = figure(r.peer_value) if r.peer_value else "-"
        share = f"{r.limit_share:.0%} of limit" if r.limit_share else ""
        ours = f"{r.case:<24} {figure(r.value):>8} {r.metric}"
        print(f"{ours}  {r.peer:<24} {peer_value:>8} {ratio:>7}  {share}")
    for name in skipped:
        print(f"skipped: {name}", file=sys.stderr)
    if path:
        result = {"machine": machine(), "rows": [asdict(r) for r in rows], "skipped": skipped}
        path.write_text(json.dumps(result, indent=2) + "\n")


def with_kept(
    case: str, made: list[Row], skipped: list[str], path: Path | None
) -> tuple[list[Row], list[str]]:
    """This case's rows and servers without any, after those of other cases in the file."""
    if path is None or not path.exists():
        return made, skipped
    old = json.loads(path.read_text())
    rows_kept = [Row(**each) for each in old["rows"] if each["case"] != case]
    return rows_kept + made, [each for each in old["skipped"] if case not in each] + skipped
