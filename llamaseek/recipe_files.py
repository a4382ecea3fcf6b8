"""Recipes by path, or by the name of one that ships with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from llamaseek.errors import UserError, unknown_name


def bundled() -> dict[str, Path]:
    """The recipes that ship with the package, by file name."""
    folder = Path(str(files("llamaseek").joinpath("recipes")))
    if not folder.is_dir():  # a source tree keeps them beside the package
        folder = folder.parents[1] / "recipes"
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(wanted: str) -> Path:
    """`wanted` as a file, else the bundled recipe of that name (`recipes/` and `.yaml` optional).

    Raises `UserError` naming the nearest bundled recipe.
    """
    path = Path(wanted)
    if path.is_file():
        return path
    known = bundled()
    name = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    inside = str(path.parent) in (".", "recipes")
    if inside and name in known:
        return known[name]
    if not inside:
        raise UserError(f"{wanted}: no such recipe file")
    raise unknown_name("recipe", wanted, list(known))
