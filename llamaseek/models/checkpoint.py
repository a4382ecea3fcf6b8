"""Hugging Face model folders: `config.json` and `model.safetensors`, read and written.

The names in memory are the names on disk, but for stacked experts (one tensor each on disk) and
what is written once and may be read twice: a tied head, a multi-token module's shared parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llamaseek.errors import UserError
from llamaseek.herd import ModelConfig
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM, build_model
from llamaseek.models.rope import Rotary

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def to_hf(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors under Hugging Face's names, each once, experts apart."""
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if name.endswith(".mlp.experts.gate_up_proj"):
            yield from _apart(name.removesuffix(".gate_up_proj"), ("gate", "up"), tensor)
        elif name.endswith(".mlp.experts.down_proj"):
            yield from _apart(name.removesuffix(".down_proj"), ("down",), tensor)
        else:
            yield name, tensor


def _apart(prefix: str, parts: tuple[str, ...], stacked: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(E, rows, columns) → one matrix an expert and part."""
    for expert, matrix in enumerate(stacked):
        for part, piece in zip(parts, matrix.chunk(len(parts)), strict=True):
            yield f"{prefix}.{expert}.{part}_proj.weight", piece


def from_hf(model: CausalLM, name: str, wanted: dict[str, Tensor]) -> Tensor | None:
    """Where the tensor `name` of a folder lives in the model: a view to copy into, or None."""
    if (found := EXPERT.fullmatch(name)) is None:
        return wanted.get(name)
    prefix, expert, part = found[1], int(found[2]), found[3]
    stacked = wanted.get(f"{prefix}.{'down_proj' if part == 'down' else 'gate_up_proj'}")
    if stacked is None or expert >= stacked.shape[0]:
        return None
    matrix = stacked[expert]
    if part == "down":
        return matrix
    gate, up = matrix.chunk(2)
    return gate if part == "gate" else up


def save_model(model: CausalLM, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors`; the routing bias stays float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in to_hf(model):
        keep = dtype is None or name.endswith("e_score_correction_bias")
        tensors[name] = tensor.detach().to("cpu", None if keep else dtype).contiguous()
    stored = next(iter(tensors.values())).dtype
    config = {**model.config.to_dict(), "dtype": str(stored).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    """The model of a Hugging Face folder, in `dtype`.

    Raises `UserError` for a missing or truncated file, and for tensors that are missing,
    unexpected or of the wrong shape, naming the first of them.
    """
    folder = Path(folder)
    config = read_config(folder)
    with torch.device("meta"):
        model = build_model(config)
    model.to_empty(device="cpu").to(dtype)
    model.tie()
    # What no checkpoint stores, and what stays float32, is made anew after the empty start.
    model.model.rotary = Rotary(model.model.rotary.width, config)
    for moe in model.moe_layers().values():
        bias = moe.gate.e_score_correction_bias
        moe.gate.e_score_correction_bias = torch.zeros_like(bias, dtype=torch.float32)
    fill_model(model, folder)
    return model


def fill_model(model: CausalLM, folder: Path) -> None:
    """Copy a folder's tensors into an existing model of the same config."""
    wanted = model.state_dict(keep_vars=False)
    missing = {name for name, _ in to_hf(model)}
    for path, name, tensor in _stored_tensors(folder):
        if _is_second_copy(model.config, name):
            continue
        target = from_hf(model, name, wanted)
        if target is None:
            raise UserError(f"{path}: has a tensor the model lacks: {name}")
        if target.shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, "
                f"but config.json asks for {tuple(target.shape)}"
            )
        target.copy_(tensor)
        missing.discard(name)
    if missing:
        raise UserError(f"{folder}: lacks {len(missing)} tensors, the first {sorted(missing)[0]}")


def _is_second_copy(config: ModelConfig, name: str) -> bool:
    """Shared tensors that some folders write again."""
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    return name.endswith((".shared_head.head.weight", "rotary_emb.inv_freq")) or (
        name.startswith("model.layers.") and name.endswith(".embed_tokens.weight")
    )


def _stored_tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield path, name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: is truncated or not a safetensors file ({error})") from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [_existing(folder / "model.safetensors")]
    try:
        shards: dict[str, Any] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{index}: is not an index of shards") from None
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: names a file outside the folder: {name!r}")
    return [_existing(folder / name) for name in names]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path
