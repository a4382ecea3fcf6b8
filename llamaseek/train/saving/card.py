"""The model card of a run: its recipe, its data with hashes, its held-out figures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llamaseek.checkpoints.card import Card, CardSection, write_card
from llamaseek.checkpoints.sources import name_of, with_names
from llamaseek.data.hub import SCHEME, parse_hub
from llamaseek.recipe.schema import Recipe
from llamaseek.train.best import RESTORED
from llamaseek.train.saving.reads import read_by
from llamaseek.train.saving.run_folder import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MOST = 1 << 30  # bytes of data that are hashed file by file

PROTOCOL = {
    "loss": "mean of the run's objective over the held-out part, per token, pair or sequence, "
    "natural logarithms",
    "bits_per_byte": "held-out loss in bits per UTF-8 byte of the text",
    "accuracy": "share of held-out pairs whose preferred answer scores higher",
    "margin": "mean difference of score between preferred and other answers, held out",
    "reward": "mean reward of answers that are sampled for held-out prompts",
}
"""What a held-out figure is, by the first part of its name in metrics.jsonl after `val_`."""


def write_run_cards(folder: RunFolder, recipe: Recipe, fingerprint: str) -> None:
    """Write the cards of a run's final model and, if it has one, of its adapter.

    `fingerprint` is of all of its data, as `state/pins.json` has it.
    """
    named = with_names(recipe)
    sections = [
        CardSection("Data", _data(recipe, fingerprint)),
        CardSection("Recipe", f"```yaml\n{_yaml(named)}```"),
    ]
    figures = last_figures(folder.path / "metrics.jsonl")
    if figures:
        sections.insert(0, CardSection("Figures", _table(figures)))
    base = recipe.model.init_from
    for place, relation in ((folder.final, "finetune"), (folder.adapter, "adapter")):
        if place.is_dir():
            write_card(place, _card(named, base, relation, figures, sections))


def _card(
    recipe: Recipe,
    base: str | None,
    relation: str,
    figures: dict[str, Any],
    sections: list[CardSection],
) -> Card:
    start = f"`{name_of(base)}`, " if base else "random weights, "
    what = "An adapter" if relation == "adapter" else "A model"
    return Card(
        title=recipe.name,
        summary=f"{what} trained by llamaseek from {start}stage {recipe.stage}, "
        f"{recipe.train.steps:,} steps.",
        base=base,
        relation=relation if base else None,
        pipeline=pipeline_of(recipe),
        tags=[recipe.stage, *(["lora"] if recipe.lora is not None else [])],
        datasets=sorted({parse_hub(s).name for s in _sources(recipe) if s.startswith(SCHEME)}),
        figures=list(_results(recipe, figures)),
        sections=sections,
    )


def pipeline_of(recipe: Recipe) -> str:
    """What a run's model is for, in the Hub's words."""
    if recipe.stage == "reward":
        return "text-classification"
    return "fill-mask" if recipe.train.objective == "masked" else "text-generation"


def _yaml(recipe: Recipe) -> str:
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


# Figures


def last_figures(path: Path) -> dict[str, Any]:
    """The last held-out figures of a run, with their step; {} where it has none."""
    found: dict[str, Any] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        row = json.loads(line)
        values = {
            key: value
            for key, value in row.items()
            if key.startswith("val_") and isinstance(value, int | float) and math.isfinite(value)
        }
        found = {"step": row.get(RESTORED, row["step"]), **values} if values else found
    return found


def _protocol(name: str) -> str:
    plain = name.removeprefix("val_").partition("/")[0]
    return PROTOCOL.get(plain, "held out; the name is metrics.jsonl's")


def _table(figures: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | {value:.6g} | {_protocol(name)} |"
        for name, value in figures.items()
        if name != "step"
    ]
    start = f"At step {figures['step']:,}, on data that the run held out."
    return "\n".join([f"{start}\n\n| figure | value | what it is |\n|---|---|---|", *rows])


def _results(recipe: Recipe, figures: dict[str, Any]) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for name, value in figures.items():
        if name != "step":
            yield EvalResult(
                task_type=pipeline_of(recipe),
                task_name=recipe.stage,
                dataset_type=recipe.name,
                dataset_name=f"{recipe.name}, held out",
                dataset_split="held-out",
                metric_type=name.removeprefix("val_").partition("/")[0],
                metric_name=name,
                metric_value=value,
                metric_args={"step": figures["step"], "protocol": _protocol(name)},
            )


# Data


def _sources(recipe: Recipe) -> list[str]:
    return [s for each in (recipe.data.sources, *recipe.data.corpora.values()) for s in each]


def _data(recipe: Recipe, fingerprint: str) -> str:
    """What the run read, with hashes, and what it generated."""
    lines = []
    for key, path in read_by(recipe):
        if key.startswith("data."):
            lines += [f"- `{key}`: `{path}`", *(f"  - {one}" for one in _hashes(Path(path)))]
    if recipe.data.rows:
        lines.append(f"- generated rows, from seed {recipe.seed}: {recipe.data.rows}")
    if recipe.data.mix:
        lines.append(f"- the mix {recipe.data.mix}; built-in sources are generated from the seed")
    return "\n".join([*lines, f"\nAll of it: `{fingerprint}`"])


def _hashes(path: Path) -> list[str]:
    """The files at a path with their SHA-256, or their number where they are many or large."""
    path = path.expanduser()
    walk = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files = [one for one in walk if one.is_file()]
    size = sum(file.stat().st_size for file in files)
    if len(files) > 20 or size > MOST:
        return [f"{len(files):,} files, {size:,} bytes"]
    return [f"`{f.name}`, {f.stat().st_size:,} bytes, sha256 `{_sha(f)}`" for f in files]


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
