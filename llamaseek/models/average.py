"""The mean of several checkpoints of one model (Llama 3 §3.4.3, §4.1.5), a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llamaseek.errors import UserError
from llamaseek.files import write_json
from llamaseek.herd.folder import read_config
from llamaseek.models.checkpoint import config_json, read_folder
from llamaseek.models.lazy import Lazy
from llamaseek.models.shards import write_tensors


def average_models(folders: Sequence[Path], target: Path) -> None:
    """Write config and mean weights of model folders that agree in their config.

    The mean is taken in float32 and stored in the first folder's dtypes.
    Raises UserError for fewer than two folders, for configs that differ, for a broken folder.
    """
    if len(folders) < 2:
        raise UserError("average: needs at least two model folders")
    config = read_config(folders[0])
    for folder in folders[1:]:
        if read_config(folder) != config:
            raise UserError(f"{folder}: is a model of another config than {folders[0]}")
    stored = [read_folder(folder, config) for folder in folders]
    tensors = {name: _mean([one[name] for one in stored]) for name in stored[0]}
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "config.json", config_json(config.to_dict(), tensors))
    write_tensors(target, tensors)


def _mean(tensors: list[Lazy]) -> Lazy:
    def rows(start: int, stop: int) -> Tensor:
        return torch.stack([one.rows(start, stop).float() for one in tensors]).mean(0)

    return Lazy(tensors[0].dtype, tensors[0].shape, rows)
