"""The bundled recipes as a table: what each is for, and what it needs by the planner.

A recipe's first comment says what it is for; `# plan:` names the model, the GPU, memory and time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from llamaseek.herd.published import find
from llamaseek.plan.gpus import find_gpu
from llamaseek.plan.recipe import recipe_answer
from llamaseek.recipe.reading import bundled
from llamaseek.recipe.schema import Recipe
from llamaseek.units import duration, size

PLAN = re.compile(r"# plan: (?P<line>(?P<model>\S+) on (?:(?P<count>\d+) )?(?P<gpu>\S+): "
                  r"(?P<memory>[^,]+), (?P<time>.+ for .+ steps))$", re.MULTILINE)  # fmt: skip


@dataclass(frozen=True)
class CatalogEntry:
    """A bundled recipe. `gpu`, `memory` and `time` are empty where nothing is planned."""

    name: str
    stage: str
    purpose: str
    gpu: str = ""
    memory: str = ""
    time: str = ""


def catalog() -> list[CatalogEntry]:
    """Every bundled recipe of training, those with a plan first."""
    found = [_entry(path) for path in bundled().values()]
    entries = [entry for entry in found if entry is not None]
    return sorted(entries, key=lambda entry: (not entry.gpu, entry.name))


def _entry(path: Path) -> CatalogEntry | None:
    text = path.read_text()
    data = yaml.safe_load(text)
    if "stage" not in data:  # cleans data
        return None
    comment = " ".join(line[2:] for line in _comment(text) if not line.startswith("# plan:"))
    purpose = re.split(r"(?<=\w)\.(?:\s|$)|[:;]\s", comment, maxsplit=1)[0].strip()
    plan = PLAN.search(text)
    if plan is None:
        return CatalogEntry(path.stem, data["stage"], purpose)
    gpu = f"{plan['count']} × {plan['gpu']}" if plan["count"] else plan["gpu"]
    return CatalogEntry(path.stem, data["stage"], purpose, gpu, plan["memory"], plan["time"])


def _comment(text: str) -> list[str]:
    """The lines of a file's first comment, without its commands."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        lines.append(line)
    return lines


def planned(recipe: Recipe, model: str, gpu: str) -> str:
    """The line after `# plan:` of a recipe that starts from the published `model`."""
    answer = recipe_answer(recipe, find(model).config, find_gpu(gpu))
    count = f"{answer['gpus']} " if answer["gpus"] > 1 else ""
    time = duration(answer["step_seconds"] * recipe.train.steps)
    memory = size(answer["bytes_per_gpu"]["total"])
    return f"{model} on {count}{gpu}: {memory}, {time} for {recipe.train.steps:,} steps"
