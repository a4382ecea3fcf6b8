"""The one loader: a model folder, opened for inference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llamaseek.checkpoints.hf import load_model
from llamaseek.engine.ranks.shards import load_share
from llamaseek.engine.ranks.tensor_group import TensorGroup
from llamaseek.errors import bad_value
from llamaseek.herd.folder import stored_tensors
from llamaseek.models import CausalLM
from llamaseek.runtime.device import has_bf16, pick_device, pick_dtype

if TYPE_CHECKING:
    from llamaseek.engine.ranks.tensor_group import TensorGroup
    from llamaseek.models import CausalLM


def stored_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """What a folder's model answers in: bf16 where it is stored in less than fp32 and the device
    multiplies bf16 natively, else fp32."""
    stored = stored_tensors(folder).get("model.norm.weight")
    wide = stored is None or stored.dtype in ("F32", "F64")
    return torch.float32 if wide or not has_bf16(device) else torch.bfloat16


def load_as_stored(folder: Path, device: torch.device) -> CausalLM:
    """A folder's model to answer with, in `stored_dtype`.

    On a CPU the weights stay in their files until they are first read, and fp8 is widened.
    """
    dtype = stored_dtype(folder, device)
    return load_model(folder, dtype, fp8=device.type == "cuda", mapped=True, device=device)


DTYPES = ("auto", "bf16", "fp32")


def load_weights(
    folder: Path, device: str, dtype: str, group: TensorGroup | None = None
) -> CausalLM:
    """The model of a folder, or this rank's share of it. UserError as the loaders raise it."""
    if dtype not in DTYPES:
        raise bad_value("--dtype", dtype, ", ".join(DTYPES))
    place = pick_device(device, "--device")
    precision = pick_dtype(dtype, place)
    if group is not None:
        return load_share(folder, precision, group, place)
    return load_model(folder, precision, fp8=place.type == "cuda", mapped=True, device=place)


def load(folder: str | Path, device: str = "auto", group: TensorGroup | None = None) -> CausalLM:
    """In the precision it is stored in, where the device has it.

    On a CPU the weights stay in their files until they are first read, and fp8 is widened. Of a
    model that a `group` of ranks answers with, this rank's share.
    """
    from llamaseek.engine.ranks.shards import load_share
    from llamaseek.runtime.device import pick_device

    folder, place = Path(folder), pick_device(device, "--device")
    if group is not None:
        return load_share(folder, stored_dtype(folder, place), group, place)
    return load_as_stored(folder, place)
