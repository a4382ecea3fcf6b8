"""Whether pip resolves every extra under constraints.txt; it asks PyPI for metadata, minutes.

`python -m tests.extras` prints a line an extra and exits 1 if one cannot be resolved or needs a
package that has no pin. It renews tests/data/requirements.json, which tests/test_project.py holds
against the pins without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
RECORD = ROOT / "tests" / "data" / "requirements.json"
EVERYTHING = "all,dev"
OF_TORCH = ("nvidia-", "cuda-")
"""What PyTorch for CUDA pins itself, and what its build for processors does without."""


def pins() -> dict[str, str]:
    """The version of each package in constraints.txt."""
    lines = (line.split("==") for line in CONSTRAINTS.read_text().split())
    return {canonicalize_name(name): version for name, version in lines}


def extras() -> dict[str, list[str]]:
    """What pyproject.toml asks for, by extra; "" is the default install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def resolved(python: Path, extra: str) -> list[dict[str, Any]]:
    """What pip would install for an extra. CalledProcessError if it finds no set of versions."""
    wanted = f"{ROOT}[{extra}]" if extra else str(ROOT)
    report = python.with_name("report.json")
    options = ["--dry-run", "--ignore-installed", "--report", str(report)]
    command = [python, "-m", "pip", "install", *options, "-c", str(CONSTRAINTS), wanted]
    subprocess.run(command, check=True, capture_output=True, text=True)
    items: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    named = [item for item in items if not item["metadata"]["name"].startswith(OF_TORCH)]
    return [item for item in named if item["metadata"]["name"] != "llamaseek"]


def record(items: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The requirements of each package that apply here, by its name and version."""
    found = {}
    for item in items:
        given = item["metadata"]
        asked = ["", *item.get("requested_extras", [])]
        needs = map(Requirement, given.get("requires_dist", []))
        applies = [
            f"{need.name} {need.specifier}".strip()
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": one}) for one in asked)
        ]
        kept = [need for need in applies if not need.startswith(OF_TORCH)]
        version = given["version"].partition("+")[0]
        found[f"{canonicalize_name(given['name'])}=={version}"] = sorted(set(kept))
    return dict(sorted(found.items()))


def main() -> None:
    """Resolve each extra, and all of them together."""
    known, failed = pins(), False
    with tempfile.TemporaryDirectory() as folder:  # a pip that reads metadata alone
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "-U", "pip"], check=True)
        for extra in [*extras(), EVERYTHING]:
            try:
                items = resolved(python, extra)
            except subprocess.CalledProcessError as error:
                print(f"[{extra}]: cannot be resolved", error.stderr.partition("conflict")[2])
                failed = True
                continue
            names = {canonicalize_name(item["metadata"]["name"]) for item in items}
            bare = sorted(names - known.keys())
            failed |= bool(bare)
            print(f"[{extra}]: {len(items)} packages", *(f"; no pin: {name}" for name in bare))
    if not failed:
        RECORD.write_text(json.dumps(record(items), indent=0) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
