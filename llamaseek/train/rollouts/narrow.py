"""A copy of the model in training to answer with, in what matrix products run in."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from llamaseek.models import CausalLM


def narrow_copy(model: CausalLM, dtype: torch.dtype) -> CausalLM:
    """The model with its wider weights in `dtype`. What is no wider is shared, as buffers are, so
    that frozen weights are not kept twice.
    """
    held: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    held[id(model.balance_loss)] = None  # of the latest step, with all that its gradient needs
    for weight in model.parameters():
        wide = weight.dtype.itemsize > dtype.itemsize
        held[id(weight)] = nn.Parameter(weight.detach().to(dtype), False) if wide else weight
    return deepcopy(model, held).eval()


@torch.no_grad()
def refresh(copied: CausalLM, model: CausalLM) -> None:
    """Bring a copy up to date, in place: captured CUDA graphs read where its weights lie."""
    for narrow, weight in zip(copied.parameters(), model.parameters(), strict=True):
        if narrow is not weight:
            narrow.copy_(weight)
