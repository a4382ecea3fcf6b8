"""From `state/weights` to a Hugging Face folder, a tensor at a time, whatever layout wrote it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llamaseek.models import CausalLM
from llamaseek.models.checkpoint import from_hf, to_hf, write_folder
from llamaseek.models.lazy import Lazy
from llamaseek.train.saving.index import Reader
from llamaseek.train.state import AVERAGE, MODEL, one_process_is_meant


def outline(model: CausalLM, dtype: torch.dtype) -> CausalLM:
    """The model without its numbers, every tensor on `meta`; parameters in `dtype`."""
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for own in model.parameters():
        empty = torch.empty_like(own, device="meta", dtype=dtype)
        memo[id(own)] = nn.Parameter(empty, requires_grad=own.requires_grad)
    return deepcopy(model, memo)


class Stored(dict[str, Tensor]):
    """The tensors of `state/weights`, read when asked for; the latest one is kept."""

    def __init__(self, weights: Path, averaged: bool) -> None:
        super().__init__()
        self.reader = Reader(weights)
        self.known = self.reader.index.state_dict_metadata
        self.averaged = averaged

    def __missing__(self, name: str) -> Tensor:
        key = MODEL + name
        if self.averaged and AVERAGE + name in self.known:
            key = AVERAGE + name
        found = self.known[key]
        assert isinstance(found, TensorStorageMetadata)
        tensor = torch.empty(found.size, dtype=found.properties.dtype)
        with one_process_is_meant():
            dcp.load({key: tensor}, storage_reader=self.reader, no_dist=True)
        self.clear()
        self[name] = tensor
        return tensor


def export(weights: Path, model: CausalLM, folder: Path, averaged: bool = False) -> None:
    """Write `config.json` and the tensors of the model that `outline` describes."""
    stored = Stored(weights, averaged)

    def reads(name: str) -> Callable[[int, int], Tensor]:
        def rows(start: int, stop: int) -> Tensor:
            whole = from_hf(name, stored)
            return whole[start:stop] if whole.shape else whole

        return rows

    tensors = {
        name: Lazy(tensor.dtype, tuple(tensor.shape), reads(name)) for name, tensor in to_hf(model)
    }
    write_folder(folder, model.config, tensors)
