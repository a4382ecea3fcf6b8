"""Checks that a run's inputs are not where the run removes or replaces files. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamaseek.data.hub import SCHEME, parse_hub
from llamaseek.errors import UserError
from llamaseek.files import places
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.post_training import RewardRecipe
from llamaseek.recipe.reading import read_mapping
from llamaseek.recipe.schema import Recipe

OWN = (
    "recipe.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "report.html",
    "before.jsonl",
    "after.jsonl",
    "tracking.json",
    "tensorboard",
    "wandb",
    "checkpoints",
    "model",
    "adapter",
    "skipped",
)
"""What a run writes, replaces and removes in its folder, beside `tokens-…`."""

DATA = ("data.sources", "data.corpora", "train.evaluate.data")
"""Keys of folders that are read with all below them; of a model's folder only its own files are."""


def read_by(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Every file, folder or glob that a run of this recipe reads, with the recipe's key."""
    single = {
        "model.init_from": recipe.model.init_from,
        "tokenizer.path": recipe.tokenizer.path,
        "tokenizer.chat_template": recipe.tokenizer.chat_template,
    }
    if recipe.distill is not None:
        single["distill.teacher"] = recipe.distill.teacher
    if recipe.sampling is not None:
        single["sampling.teacher"] = recipe.sampling.teacher
        yield from _rewards("sampling.rewards", recipe.sampling.rewards)
    yield from _rewards("rollout.rewards", recipe.rollout.rewards)
    yield from ((key, path) for key, path in single.items() if path)
    if (benchmarks := recipe.train.evaluate) is not None:
        yield from (("train.evaluate.data", path) for path in benchmarks.data)
        files = (task for task in benchmarks.tasks if Path(task).suffix in (".yaml", ".yml"))
        yield from (("train.evaluate.tasks", file) for file in files)
    for paths in (recipe.data.sources, *recipe.data.corpora.values()):
        key = "data.sources" if paths is recipe.data.sources else "data.corpora"
        yield from ((key, parse_hub(p).name if p.startswith(SCHEME) else p) for p in paths)


def _rewards(key: str, rewards: list[RewardRecipe]) -> Iterator[tuple[str, str]]:
    for number, reward in enumerate(rewards):
        if reward.model:
            yield f"{key}.{number}.model", reward.model


def check_reads(recipe: Recipe) -> None:
    """UserError, naming the key, where the run would remove or replace what it reads."""
    folder = recipe.folder
    own = [one.resolve() for one in (*(folder / name for name in OWN), *folder.glob("tokens-*"))]
    for key, path in read_by(recipe):
        for place in places(path) if path else ():
            inside = any(place.is_relative_to(one) for one in own)
            around = folder.resolve().is_relative_to(place)
            if inside or around and (key in DATA or place == folder.resolve()):
                raise UserError(
                    f"{key}: {path} is where the run writes and replaces files (out: {folder}); "
                    "allowed: another out"
                )


def check_recipe_file(path: Path, recipe: Recipe) -> None:
    """UserError where a recipe that someone wrote lies where the run writes the resolved one."""
    if path.resolve() != (recipe.folder / "recipe.yaml").resolve():
        return
    resolved = load_recipe(path, []).model_dump(mode="json")
    if read_mapping(path, []) != resolved:
        raise UserError(
            f"{path}: would be replaced by the run's resolved recipe; allowed: another out, or "
            "another name for the file"
        )
