"""The config of a model folder, or of a model of the herd by name. No torch, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, unknown_name
from llamaseek.herd.configs import ModelConfig, config_from_dict
from llamaseek.herd.published import ENTRIES, Entry


def read_config(folder: str | Path) -> ModelConfig:
    """The config of a folder; `UserError` where it is missing, broken or cannot be run."""
    path = Path(folder) / "config.json"
    try:
        return config_from_dict(read_json_object(path))
    except UserError as error:
        message = str(error)
        raise UserError(message if str(path) in message else f"{path}: {message}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `UserError` names the file and what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a JSON object")
    return data


def find_or_read(model: str) -> Entry:
    """The herd's entry called `model`, else one made from the folder `model`."""
    if model.lower() in ENTRIES:
        return ENTRIES[model.lower()]
    folder = Path(model)
    if (folder / "config.json").is_file():
        return Entry(name=model, title=folder.resolve().name, repo=None, config=read_config(folder))
    if folder.is_dir():
        raise UserError(f"{model}: is a folder without config.json")
    raise unknown_name("model", model, list(ENTRIES))
