"""The one loader: a model and its tokenizer, opened for inference.

The kind of `source` is detected here and in the readers on lower floors.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch

from llamaseek.checkpoints.adapter_config import CONFIG as ADAPTER_CONFIG
from llamaseek.checkpoints.hf import load_model
from llamaseek.checkpoints.sources import find_source, is_id
from llamaseek.engine.ranks.shards import load_share
from llamaseek.engine.ranks.tensor_group import TensorGroup
from llamaseek.errors import UserError, bad_value, quoted
from llamaseek.files import is_gguf, read_json_object
from llamaseek.herd.configs import MASKED
from llamaseek.herd.folder import read_config, stored_tensors
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM
from llamaseek.runtime.device import has_bf16, pick_device, pick_dtype
from llamaseek.text.tokenizer import Tokenizer

DTYPES = ("auto", "bf16", "fp32")
log = logging.getLogger(__name__)


def open_model(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
    group: TensorGroup | None = None,
) -> CausalLM:
    """The model of a folder, to run inference with; with a `group` of ranks, this rank's shard.

    On a CPU the weights stay in their files until they are first read, fp8 is widened, and with
    dtype "auto" a GGUF file's blocks are multiplied as they are; else they are widened. `source`
    may be a LoRA adapter's folder that names its base; `adapter` is the folder of one for the model
    of `source`. It is merged into the weights as they are read.
    Raises UserError for a device, dtype, model or adapter that cannot be used.
    """
    if dtype not in DTYPES:
        raise bad_value("dtype", dtype, ", ".join(DTYPES))
    place = pick_device(str(device), "device")
    folder, lora = _parts(Path(source), adapter)
    if not read_config(folder).is_causal:
        raise UserError(f"{source}: {MASKED}; use: {quoted('llamaseek', 'fill', source)} TEXT")
    kind = inference_dtype(folder, dtype, place)
    if group is None:
        return load_model(
            folder,
            kind,
            fp8=place.type == "cuda",
            mapped=True,
            device=place,
            adapter=lora,
            packed=dtype == "auto"
            and lora is None
            and (not is_gguf(folder) or keeps_blocks(place)),
        )
    if lora is not None:
        raise UserError(
            f"adapter: {lora} is not for several ranks; merge it with: llamaseek convert --adapter"
        )
    return load_share(folder, kind, group, place)


def keeps_blocks(device: torch.device) -> bool:
    """Whether a GGUF file's blocks are multiplied as they are there; if not, a line says why."""
    if device.type != "cpu":
        say_widened(f"there are no kernels for them on {device.type}")
    elif not builder().possible:
        say_widened(builder().reason or "no C++ compiler builds the kernels for them")
    else:
        return True
    return False


@cache
def say_widened(reason: str) -> None:
    """Log, once a process, that blocks are not kept."""
    log.warning("GGUF blocks are widened as they are read: %s", reason)


def open_tokenizer(source: str | Path, adapter: str | Path | None = None) -> Tokenizer:
    """The tokenizer of what `open_model` opens. UserError where it is missing or broken."""
    return Tokenizer.load(_parts(Path(source), adapter)[0])


def inference_dtype(folder: Path, wanted: str, device: torch.device) -> torch.dtype:
    """What a folder's model computes in.

    `auto` is bf16 for weights that are stored in less than fp32 if the device multiplies bf16
    natively, else fp32.
    """
    if wanted != "auto":
        return pick_dtype(wanted, device)
    stored = stored_tensors(folder).get("model.norm.weight")
    wide = stored is None or stored.dtype in ("F32", "F64")
    return torch.float32 if wide or not has_bf16(device) else torch.bfloat16


def _parts(source: Path, adapter: str | Path | None) -> tuple[Path, Path | None]:
    """The base's folder, and that of the adapter to merge; names are found and fetched."""
    if not source.exists():
        source = find_source(source, adapters=True)
    if (source / "config.json").is_file() or not (source / ADAPTER_CONFIG).is_file():
        return source, None if adapter is None else find_source(adapter, adapters=True)
    if adapter is not None:
        raise UserError(f"adapter: {adapter} is given for {source}, which is an adapter itself")
    return _base(source), source


def _base(adapter: Path) -> Path:
    """The model that an adapter names as its base, with the revision that it names."""
    config = read_json_object(adapter / ADAPTER_CONFIG)
    named, revision = (config.get(key) for key in ("base_model_name_or_path", "revision"))
    try:
        if not isinstance(named, str) or not named:
            raise UserError(f"{named!r} is no name")
        return find_source(f"{named}@{revision}" if revision and is_id(named) else named)
    except UserError as error:
        raise UserError(
            f"{adapter / ADAPTER_CONFIG}: base_model_name_or_path: {error}; give the base as the "
            f"model, and {adapter} as its adapter"
        ) from None
