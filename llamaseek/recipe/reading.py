"""YAML files read as plain data, with overrides, and checked against a section."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from llamaseek.errors import UserError, shorten, unknown_name
from llamaseek.files import read_bytes
from llamaseek.recipe.plain import LARGEST, load_yaml


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, as are numbers that are not finite, and nothing
    changes after loading. The string below a field is its entry in docs/recipes.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=BaseModel)
Overrides = Mapping[str, Any] | Iterable[str]
"""Dotted keys with values, or words `key=value` as on the command line."""


ELSEWHERE = {
    "lr": "train.lr",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "batch": "train.batch, in rows a step",
    "rank": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "learning_rate": "train.lr",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "batch_size": "train.batch, in rows a step",
    "per_device_train_batch_size": "train.micro_batch, in rows a forward, and train.batch",
    "gradient_accumulation_steps": "train.batch, in rows a step, and train.micro_batch",
    "max_length": "data.length",
    "max_seq_length": "data.length",
    "cutoff_len": "data.length",
    "warmup_steps": "train.warmup",
    "lr_scheduler_type": "train.schedule",
    "max_grad_norm": "train.clip",
    "gradient_checkpointing": "train.checkpoint_activations",
    "save_steps": "train.save_every",
    "eval_steps": "train.eval_every",
    "save_total_limit": "train.keep",
    "output_dir": "out",
    "model_name_or_path": "model.init_from",
    "beta": "train.dpo_beta",
}
"""Names of TRL, transformers, axolotl and LLaMA-Factory, and the key to use here instead."""


def as_words(overrides: Overrides) -> list[str]:
    """Overrides as words `key=value`."""
    if isinstance(overrides, str):
        raise UserError(f"overrides: {overrides!r} is one text; give a mapping or a list of texts")
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    return list(overrides)


def read_mapping(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The plain data of a YAML file with its overrides, not checked yet."""
    try:
        data = load_yaml(read_bytes(path, LARGEST).decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is not YAML ({shorten(str(error))})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a recipe (a YAML mapping of keys)")
    for override in overrides:
        apply_override(data, override)
    return data


def validated(kind: type[Checked], data: dict[str, Any], within: str = "") -> Checked:
    """A section of a recipe from plain data; `within` is where it stands, for the error."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _one_line(error, kind, within) from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in `data`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    try:
        value = load_yaml(text)
    except ValueError:
        value = text  # a path or phrase that YAML cannot read is what it is
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"{key}: {parent} is not a section of the recipe")
    # YAML 1.1 reads 3e-4 as a word.
    data[last] = _number(value) if isinstance(value, str) else value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _one_line(error: ValidationError, kind: type[BaseModel], within: str) -> UserError:
    found = error.errors()
    # A misspelled key often leaves another one missing; the spelling is what to say.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    where = [str(part) for part in first["loc"]]
    key = ".".join([within, *where] if within else where)
    if first["type"] == "extra_forbidden":
        if where[-1] in ELSEWHERE:
            return UserError(f"recipe key {key}: no such key; use {ELSEWHERE[where[-1]]}")
        known = [*_section_at(kind, where[:-1]).model_fields]
        return UserError(str(unknown_name(f"recipe key {key}:", where[-1], known)))
    if first["type"] == "value_error":  # of a section as a whole, in our own words
        return UserError(f"{key or 'recipe'}: {first['ctx']['error']}")
    return UserError(f"{key}: {shorten(repr(first['input']))} is not allowed; {first['msg']}")


def _section_at(kind: Any, where: list[str]) -> Any:
    """The section that a path leads to, through optional sections and lists of them."""
    for part in where:
        if part.isdigit():
            continue
        kind = kind.model_fields[part].annotation
        inner = [one for one in get_args(kind) if isinstance(one, type) and one is not type(None)]
        kind = inner[0] if inner else kind
    return kind


def bundled() -> dict[str, Path]:
    """The recipes that ship with the package, by file name."""
    folder = Path(str(files("llamaseek.recipe"))) / "bundled"
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
