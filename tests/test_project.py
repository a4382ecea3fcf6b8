"""What the project says of itself agrees with what it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

import llamaseek

ROOT = Path(__file__).parents[1]
DEVELOPERS = {"all", "test", "dev"}


def test_the_citation_has_the_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == llamaseek.__version__ and cited["license"] == "MIT"


def test_the_extra_all_is_every_extra_of_users() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = set(extras["all"][0].removeprefix("llamaseek[").removesuffix("]").split(","))
    assert named == set(extras) - DEVELOPERS


def test_a_plain_runner_calls_what_developers_call() -> None:
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = flow["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make lint test"]
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text())
