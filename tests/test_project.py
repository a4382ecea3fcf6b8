"""What the project says of itself agrees with what it is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import llamaseek
from tests.extras import OF_TORCH, RECORD, extras, pins

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


def test_the_server_is_part_of_the_default_install() -> None:
    names = {Requirement(each).name for each in extras()[""]}
    assert {"fastapi", "uvicorn", "prometheus-client"} <= names


def test_every_extra_resolves_under_the_constraints() -> None:
    """The pins satisfy what pyproject.toml and each pinned package ask for.

    A pin that has changed makes the record stale: `make extras` resolves anew and renews it.
    """
    known = pins()
    recorded = json.loads(RECORD.read_text())
    assert {f"{name}=={known[name]}" for name in known} >= recorded.keys()
    asked = {"pyproject.toml": [each for extra in extras().values() for each in extra], **recorded}
    assert {"mlflow", "wandb", "trackio"} <= {each.partition("==")[0] for each in recorded}
    for package, needs in asked.items():
        for need in map(Requirement, needs):
            name = canonicalize_name(need.name)
            if name == "llamaseek" or name.startswith(OF_TORCH):
                continue
            assert need.specifier.contains(known[name], prereleases=True), f"{package}: {need}"


def test_a_plain_runner_calls_what_developers_call() -> None:
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = flow["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make lint test"]
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text())
