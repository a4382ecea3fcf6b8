"""A model folder, found and ready to generate from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamaseek.errors import UserError

if TYPE_CHECKING:
    from llamaseek.models import CausalLM
    from llamaseek.parallel.tensor_group import TensorGroup

DEVICE = typer.Option("auto", help="cpu, cuda or cuda:1; auto takes the GPU where there is one.")

HINTS = {
    "model/config.json": "is a run's folder; its model is {0}/model",
    "adapter_config.json": "is an adapter; llamaseek convert BASE NEW --adapter {0} folds it in",
    "consolidated.00.pth": "is Meta's; llamaseek convert {0} NEW makes a model folder of it",
}
"""What stands where a model folder was asked for, by a file in it, and what to do."""


def model_folder(path: Path | None) -> Path | None:
    """A model folder as it was given; UserError for a path that is something else.

    What a folder that looks like one lacks is for its readers to say.
    """
    if path is None or (path / "config.json").is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such folder{_download(str(path))}")
    for file, hint in HINTS.items():
        if (path / file).is_file():
            raise UserError(f"{path}: {hint.format(path)}")
    return path


def _download(name: str) -> str:
    from llamaseek.herd.published import ENTRIES

    entry = ENTRIES.get(name.lower())
    return f"; llamaseek download {name} fetches it" if entry and entry.repo else ""


def load(folder: str | Path, device: str = "auto", group: TensorGroup | None = None) -> CausalLM:
    """In the precision it is stored in, where the device has it.

    On a CPU the weights stay in their files until they are first read, and fp8 is widened. Of a
    model that a `group` of ranks answers with, this rank's share.
    """
    from llamaseek.parallel.narrow import load_share
    from llamaseek.train.machine import load_as_stored, pick_device, stored_dtype

    folder, place = Path(folder), pick_device(device, "--device")
    if group is not None:
        return load_share(folder, stored_dtype(folder, place), group, place)
    return load_as_stored(folder, place)
