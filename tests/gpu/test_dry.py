"""`make gpu-dry`: every part of `make gpu` runs, in tiny sizes and on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.__main__ import PARTS


@pytest.mark.parametrize("name", ["machine", "training", "rollouts", "decode"])
def test_a_part_runs_without_a_gpu(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--only", name, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    (part,) = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0 and part["ended"] == "exit 0", part["log"]
    assert part["found"] or name == "decode"
    assert f"## {name}: exit 0" in (tmp_path / "gpu.md").read_text()


def test_all_parts_end_within_eleven_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= 660
