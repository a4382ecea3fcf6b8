"""Paths that are given where a model is wanted. No torch."""

from __future__ import annotations

from pathlib import Path

from llamaseek.errors import UserError
from llamaseek.files import is_gguf
from llamaseek.herd.published import ENTRIES

ADAPTER = "adapter_config.json"
HINTS = {
    "model/config.json": "is a run's folder; its model is {0}/model",
    ADAPTER: "is an adapter; llamaseek convert BASE NEW --adapter {0} merges it",
    "consolidated.00.pth": "is Meta's; llamaseek convert {0} NEW makes a model folder of it",
}
"""What stands where a model folder was asked for, by a file in it, and what to do."""


def check_source(path: Path, adapters: bool = False) -> None:
    """UserError for a path that is no model folder or GGUF file, saying what it is and what to do.

    With `adapters` a LoRA adapter's folder will do. What a folder that looks like one lacks is for
    its readers to say.
    """
    if (path / "config.json").is_file() or (path.is_file() and is_gguf(path)):
        return
    if not path.is_dir():
        raise UserError(f"{path}: no such {_wanted(path)}{_download(str(path))}")
    for file, hint in HINTS.items():
        if (path / file).is_file() and not (adapters and file == ADAPTER):
            raise UserError(f"{path}: {hint.format(path)}")


def _wanted(path: Path) -> str:
    if path.is_file():
        return "folder; it is a file, and not a GGUF one"
    return "file" if path.suffix == ".gguf" else "folder"


def _download(name: str) -> str:
    entry = ENTRIES.get(name.lower())
    return f"; llamaseek download {name} fetches it" if entry and entry.repo else ""
