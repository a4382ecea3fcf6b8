"""docs/architecture.md against the code: its names exist, its picture shows every room."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = {path.stem for path in (ROOT / "llamaseek").iterdir() if not path.name.startswith("_")}
WAYS = PAGE.partition("## Ten ways")[2]
NAMES = sorted(set(re.findall(r"`([a-z_]+(?:\.\w+)+)`", WAYS)))


def resolve(name: str) -> Any:
    """The module, class, function or method that a dotted name below `llamaseek` leads to."""
    parts = name.split(".")
    found: Any = importlib.import_module("llamaseek")
    for index, part in enumerate(parts):
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(".".join(["llamaseek", *parts[: index + 1]]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_in_the_code(name: str) -> None:
    assert resolve(name) is not None


def test_ten_ways_are_described() -> None:
    assert WAYS.count("\n### ") == 10


def test_the_picture_and_the_contracts_know_every_room() -> None:
    drawn = set(re.findall(r'class="room"[^>]*>(\w+)<', (ROOT / "docs" / "rooms.svg").read_text()))
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = {room for line in contracts["contracts"][0]["layers"] for room in
              re.findall(r"\w+", line)}  # fmt: skip
    assert ROOMS - {"py"} <= drawn == layers
