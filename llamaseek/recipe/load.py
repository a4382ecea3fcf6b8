"""Recipes read from YAML with overrides, and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llamaseek.files import write_text
from llamaseek.recipe.reading import read_mapping, validated
from llamaseek.recipe.schema import Recipe, with_given


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """The recipe of a YAML file with dotted `key=value` overrides.

    Files given as `data.sources` take the place of the recipe's own corpora, mix and rows.
    Raises `UserError` naming the key, its value and what is allowed.
    """
    return make_recipe(with_given(read_mapping(path, overrides), overrides))


def make_recipe(data: dict[str, Any]) -> Recipe:
    """A checked recipe from plain data; one line for the first thing that is wrong."""
    return validated(Recipe, data)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, enough to repeat the run."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
