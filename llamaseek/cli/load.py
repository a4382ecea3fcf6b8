"""A model folder, ready to generate from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamaseek.models import CausalLM


def load(folder: str | Path) -> CausalLM:
    """On the GPU where there is one; in the precision it is stored in, where the machine has it.

    On a CPU the weights stay in their files until they are first read.
    """
    import torch

    from llamaseek.herd.stored import stored_tensors
    from llamaseek.models.checkpoint import load_model
    from llamaseek.train.machine import has_bf16, pick_device

    device = pick_device("auto")
    stored = stored_tensors(Path(folder)).get("model.norm.weight")
    wide = stored is None or stored.dtype in ("F32", "F64") or not has_bf16(device)
    dtype = torch.float32 if wide else torch.bfloat16
    return load_model(folder, dtype, mapped=True).to(device)
