"""Hugging Face model folders: `config.json` and `model*.safetensors`, read and written.

The names in memory are the names on disk, but for stacked experts (one tensor each on disk) and
what is written once and may be read twice: a tied head, a multi-token module's shared parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llamaseek.checkpoints.gguf.keep import keep_blocks
from llamaseek.checkpoints.grouped import in_blocks, ungrouped
from llamaseek.checkpoints.merge_adapter import merged
from llamaseek.checkpoints.peft import read_adapter
from llamaseek.checkpoints.shards import SHARD_BYTES, open_tensors, write_tensors
from llamaseek.checkpoints.widen import dequantized, widened
from llamaseek.errors import UserError
from llamaseek.files import write_json
from llamaseek.herd import ModelConfig
from llamaseek.herd.compare import is_second_copy, problems
from llamaseek.herd.configs import ROUTING_BIAS
from llamaseek.herd.folder import read_config, stored_tensors
from llamaseek.herd.formats import PACKED_SHAPE, SCALE
from llamaseek.models import CausalLM, build_model
from llamaseek.models.lazy import Lazy, lazy
from llamaseek.models.lora import whole_state
from llamaseek.models.quant.fp8 import check_scale, keep_fp8
from llamaseek.models.quant.packed import keep_packed
from llamaseek.models.rope import Rotary
from llamaseek.units import size

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight(_\w+)?")
VALUE_HEAD = "value_head."
"""Of PPO; a folder leaves it out, `state/` keeps it."""
STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up|down)_proj(_scale_inv|_packed|_scale)?")


def to_hf(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors under Hugging Face's names, each once, experts apart."""
    for name, tensor in whole_state(model).items():
        if model.config.tie_word_embeddings and name == "lm_head.weight":
            continue
        if name.startswith(VALUE_HEAD):
            continue
        if (found := STACKED.fullmatch(name)) is None:
            yield name, tensor
            continue
        prefix, parts, suffix = found[1], found[2].split("_"), found[3] or ""
        for expert, matrix in enumerate(tensor):
            pieces = matrix.view(len(parts), -1, matrix.shape[-1])
            for part, piece in zip(parts, pieces, strict=True):
                yield f"{prefix}.{expert}.{part}_proj.weight{suffix}", piece


def from_hf(name: str, wanted: dict[str, Tensor]) -> Tensor:
    """Where the tensor `name` of a folder lives in a model's state: a view to copy into."""
    if (found := EXPERT.fullmatch(name)) is None:
        return wanted[name]
    prefix, expert, part, suffix = found[1], int(found[2]), found[3], found[4] or ""
    if part == "down":
        return wanted[f"{prefix}.down_proj{suffix}"][expert]
    pair = wanted[f"{prefix}.gate_up_proj{suffix}"][expert]
    return pair.view(2, -1, pair.shape[-1])[int(part == "up")]


def save_model(
    model: CausalLM,
    folder: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `config.json` and the tensors, in shards of at most `shard_bytes`.

    `dtype` casts them as they are written; the routing bias stays float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: lazy(tensor) for name, tensor in to_hf(model)}
    if dtype is not None:
        tensors = cast_weights(tensors, dtype)
    write_folder(folder, model.config, tensors, shard_bytes)


def write_folder(
    folder: Path, config: ModelConfig, tensors: dict[str, Lazy], shard_bytes: int = SHARD_BYTES
) -> None:
    """`config.json` and the tensors under Hugging Face's names, as they are read."""
    write_json(folder / "config.json", config_json(config.to_dict(), tensors))
    write_tensors(folder, tensors, shard_bytes)


def cast_weights(tensors: dict[str, Lazy], dtype: torch.dtype) -> dict[str, Lazy]:
    """Every tensor in `dtype`, but for the routing bias, which is float32 in every folder."""
    return {
        name: tensor if name.endswith(ROUTING_BIAS) else tensor.cast(dtype)
        for name, tensor in tensors.items()
    }


def config_json(config: dict[str, object], tensors: dict[str, Lazy]) -> dict[str, object]:
    """`config` with the dtype that its first tensor is stored in."""
    stored = next(iter(tensors.values())).dtype
    return {**config, "dtype": str(stored).removeprefix("torch.")}


def read_folder(folder: Path, config: ModelConfig) -> dict[str, Lazy]:
    """A folder's tensors, those that `config` asks for; second copies of shared ones left out.

    Raises `UserError` for a missing or broken file, and for the first tensor that is missing,
    unexpected or of the wrong shape.
    """
    stored = stored_tensors(folder)
    for problem in problems(config, stored, folder):
        raise UserError(problem.message)
    tensors = ungrouped(open_tensors(stored), folder)
    _check_shared(config, tensors, folder)
    return {name: tensor for name, tensor in tensors.items() if not is_second_copy(config, name)}


def _check_shared(config: ModelConfig, tensors: dict[str, Lazy], folder: Path) -> None:
    """UserError where a multi-token module has an embedding or head unlike the model's.

    Modules share both (V3 report §2.2), so there is no place for others.
    """
    embedding = "model.embed_tokens.weight"
    head = "lm_head.weight" if "lm_head.weight" in tensors else embedding
    pairs = {".embed_tokens.weight": embedding, ".shared_head.head.weight": head}
    for name, tensor in tensors.items():
        for ending, shared in pairs.items():
            if name.endswith(ending) and name != shared and not _equal(tensor, tensors[shared]):
                raise UserError(f"{folder}: {name} differs from {shared}, which it should share")


def _equal(one: Lazy, other: Lazy) -> bool:
    """Whether two tensors hold the same numbers."""
    return one.shape == other.shape and all(
        torch.equal(one.rows(*piece).float(), other.rows(*piece).float()) for piece in one.pieces()
    )


class SkipInit(TorchFunctionMode):
    """Building on `meta`, and moving off it, without three calls for which PyTorch imports its
    compiler there, which takes longer than mapping a folder.

    Initial weights are not drawn, and the rotary table, which is made anew later, is a real one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`normal_` leaves its tensor as it is, `arange` counts on the CPU, `empty_like` makes an
        empty tensor of the same shape; the rest is done."""
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty_like:
            return torch.empty(args[0].shape, dtype=args[0].dtype, device=kwargs["device"])
        if func is torch.arange:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def load_model(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    fp8: bool = False,
    config: ModelConfig | None = None,
    mapped: bool = False,
    device: torch.device | str = "cpu",
    adapter: Path | None = None,
    packed: bool = False,
) -> CausalLM:
    """The model of a Hugging Face folder, in `dtype`; each tensor is in memory once.

    Weights go from their files to `device`, a few rows at a time.

    Weights stored in fp8 blocks are widened to `dtype`, or with `fp8` kept as they are. Packed ones
    of 4 or 8 bits stay packed, and `dtype` is what the model computes in. `config` takes the place
    of the folder's, as where a context is extended. With `mapped`, tensors that are stored as they
    are used stay in their files on a CPU, read when first touched, and take no memory that the
    system cannot have back; such a model is for inference. With `packed`, so do a GGUF file's
    blocks that have kernels, and GPTQ's and AWQ's matrices become such blocks; otherwise these are
    widened. `adapter` is the folder of a LoRA that is merged into the weights,
    which are widened to `dtype` for it.
    Raises `UserError` as `read_folder` does, for a scale that is not a number, and for weights
    that do not fit the device's memory.
    """
    folder, device = Path(folder), torch.device(device)
    config = config or read_config(folder)
    tensors = read_folder(folder, config)
    if adapter is not None:
        plain = dequantized(widened(tensors, dtype), dtype)
        tensors = merged(plain, read_adapter(adapter), adapter)
        if config.tie_word_embeddings and "lm_head.weight" in tensors:
            config = replace(config, tie_word_embeddings=False)
    if packed:
        tensors = in_blocks(tensors)
    with torch.device("meta"), SkipInit():
        model = build_model(config).to(dtype)
        if fp8:
            keep_fp8(model, tensors)
        keep_packed(model, tensors)
        if packed:
            tensors = keep_blocks(model, tensors)
    return materialise(model, tensors if fp8 else dequantized(tensors, dtype), mapped, device)


def materialise(
    model: CausalLM, tensors: dict[str, Lazy], mapped: bool, device: torch.device
) -> CausalLM:
    """A model on `meta`, with a folder's tensors on `device`, or `mapped` as `load_model` says."""
    try:
        with SkipInit():
            model.to_empty(device=device)
    except torch.OutOfMemoryError:
        needed = size(sum(tensor.nbytes for tensor in model.state_dict().values()))
        raise UserError(f"model: its {needed} of weights do not fit {device}") from None
    model.tie()
    # Buffers that are not stored, and float32 parts, are initialized after the empty start.
    model.model.rotary = Rotary(model.model.rotary.width, model.config).to(device)
    for moe in model.moe_layers().values():
        bias = moe.gate.e_score_correction_bias
        moe.gate.e_score_correction_bias = torch.zeros_like(bias, dtype=torch.float32)
    _fill(model, tensors, mapped and device.type == "cpu")
    model.tie()
    return model


def _fill(model: CausalLM, tensors: dict[str, Lazy], mapped: bool = False) -> None:
    wanted = model.state_dict(keep_vars=False)
    for name, tensor in tensors.items():
        if name.endswith(PACKED_SHAPE):
            continue
        if mapped and tensor.mapped and name in wanted and wanted[name].dtype == tensor.dtype:
            _put(model, name, tensor.mapped())
            continue
        target = from_hf(name, wanted)
        tensor.copy_to(target)
        if name.endswith(SCALE):
            check_scale(name, target)


def _put(model: CausalLM, name: str, tensor: Tensor) -> None:
    """Make a tensor itself the parameter or buffer of this name."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    if own in module._parameters:
        setattr(module, own, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, own, tensor)
