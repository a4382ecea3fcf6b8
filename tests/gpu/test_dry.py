"""`make gpu-dry`: every part of `make gpu` runs, in tiny sizes and on a CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from bench.gpu.__main__ import KERNELS, PARTS, ROOT, TRAINING, WHEELS, Part, run

HIDING = """
import importlib, sys
sys.modules.update(dict.fromkeys(HIDDEN))  # as if they were not there
for name in ("machine", "training", "rollouts"):
    importlib.import_module(f"bench.gpu.{name}")
import bench.decode, pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--collect-only", *FILES]))
"""


@pytest.mark.parametrize("name", ["machine", "training", "rollouts", "decode"])
def test_a_part_runs_without_a_gpu(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--only", name, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    (part,) = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0 and part["ended"] == "exit 0", part["log"]
    assert part["found"] or name == "decode"
    assert f"## {name}: exit 0" in (tmp_path / "gpu.md").read_text()


def needed() -> set[str]:
    """The names of what the project depends on, its extras for tests included."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*found["dependencies"], *sum(found["optional-dependencies"].values(), [])]
    return {re.split(r"[\[<>=~;]", line)[0].lower() for line in lines}


def test_the_listed_wheels_are_all_that_the_parts_import() -> None:
    kept = {
        "llamaseek",
        "torch",
        "triton",
        "setuptools",
        "jinja2",
        "xxhash",
        *(w.lower() for w in WHEELS),
    }
    known = packages_distributions()
    hidden = [m for m, names in known.items() if {n.lower() for n in names} & (needed() - kept)]
    assert {"fastapi", "pyarrow", "matplotlib", "trl"} <= set(hidden)
    script = f"HIDDEN, FILES = {hidden!r}, {[*KERNELS, *TRAINING]!r}\n{HIDING}"
    command = [sys.executable, "-c", script]
    plain = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "pytest_timeout",
    }
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_unpacked_wheels_are_found_by_every_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "unpacked.py").write_text("print('{\"found\": true}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    part = Part("one", 60, ("-m", "unpacked"), ())
    assert run(part, dry=False)["found"] == [{"found": True}]


def test_all_parts_end_within_eleven_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= 660
