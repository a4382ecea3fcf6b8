"""Meta's own folders: `params.json` and `consolidated.NN.pth`, one a model-parallel rank.

Layout from meta-llama/llama-models `models/llama3/model.py`: column-parallel matrices are cut by
rows, row-parallel ones by columns, norms are in every file. Meta rotates neighboring pairs where
Hugging Face rotates halves, so the rows of each query and key head change their order.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamaseek.checkpoints.shards import NAMES
from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.files import read_json_object
from llamaseek.herd import Llama3Config, ModelConfig, RopeScaling
from llamaseek.herd.compare import problems
from llamaseek.herd.header import StoredTensor
from llamaseek.herd.published import ENTRIES
from llamaseek.models.lazy import Lazy, lazy

PARAMS = "params.json"
LAYER = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
OUTSIDE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds Meta's files and no `config.json`."""
    return (folder / PARAMS).is_file() and not (folder / "config.json").is_file()


def read_meta(folder: Path) -> tuple[Llama3Config, dict[str, Lazy]]:
    """A Meta folder as a config and tensors under Hugging Face's names, mapped, not read.

    Raises `UserError` for a missing, broken or unsafe file and for tensors that do not fit
    `params.json`.
    """
    ranks = [_load(path) for path in _files(folder)]
    config = _config(folder, ranks[0])
    tensors = dict(_tensors(config, ranks))
    path = folder / "consolidated.00.pth"
    stored = {
        n: StoredTensor(n, NAMES.get(t.dtype, "?"), t.shape, path) for n, t in tensors.items()
    }
    for problem in problems(config, stored, folder):
        raise UserError(problem.message)
    return config, tensors


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("consolidated.*.pth"))
    for number, path in enumerate(found):
        if path.name != f"consolidated.{number:02d}.pth":
            raise UserError(f"{folder}: lacks consolidated.{number:02d}.pth")
    if not found:
        raise UserError(f"{folder}: has {PARAMS} but no consolidated.00.pth")
    return found


def _load(path: Path) -> dict[str, Tensor]:
    """A pickle of tensors alone: with weights_only nothing in it is run."""
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = shorten(str(error).partition(".")[0])
        raise UserError(f"{path}: contains objects other than tensors ({reason})") from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{path}: contains objects other than tensors")
    return found


def _config(folder: Path, first: dict[str, Tensor]) -> Llama3Config:
    params = read_json_object(folder / PARAMS)
    try:
        config = _sizes(params, tied="output.weight" not in first)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{folder / PARAMS}: lacks or breaks {error}") from None
    if not params.get("use_scaled_rope", False):
        return replace(config, max_position_embeddings=8192)
    # The file says that frequencies are scaled, not by how much: 32 for the 3.2 models, else 8.
    for entry in ENTRIES.values():
        if _same_sizes(entry.config, config):
            return replace(config, **{name: getattr(entry.config, name) for name in UNSAID})
    return replace(config, rope_scaling=RopeScaling("llama3", 8.0, 8192))


def _sizes(params: dict[str, Any], tied: bool) -> Llama3Config:
    width, heads = params["dim"], params["n_heads"]
    for name in ("quantization_args", "lora_args", "vision_chunk_size"):
        if params.get(name, -1) not in (-1, None):
            raise bad_value(f"{PARAMS} {name}", params[name], "none: plain text models only")
    # SwiGLU's width: two thirds of four times the width, stretched, rounded up (model.py).
    inner = int(int(8 * width / 3) * (params.get("ffn_dim_multiplier") or 1))
    multiple = params.get("multiple_of", 256)
    return Llama3Config(
        vocab_size=params["vocab_size"],
        hidden_size=width,
        intermediate_size=-(-inner // multiple) * multiple,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=params.get("n_kv_heads") or heads,
        head_dim=width // heads,
        max_position_embeddings=131072,
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=float(params.get("rope_theta", 500000.0)),
        tie_word_embeddings=tied,
        bos_token_id=128000,
        eos_token_id=128001,
    )


UNSAID = (
    "rope_scaling",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Fields that Meta's files leave out; a tied head is written all the same."""


def _same_sizes(known: ModelConfig, config: Llama3Config) -> bool:
    """Whether a published config with rotary scaling is `config` but for UNSAID."""
    same: dict[str, Any] = {name: getattr(config, name) for name in UNSAID}
    return known.rope_scaling is not None and replace(known, **same) == config


def _tensors(config: Llama3Config, ranks: list[dict[str, Tensor]]) -> Iterator[tuple[str, Lazy]]:
    for name in ranks[0]:
        if name == "rope.freqs" or (name == "output.weight" and config.tie_word_embeddings):
            continue
        missing = [rank for rank, tensors in enumerate(ranks) if name not in tensors]
        if missing:
            raise UserError(f"consolidated.{missing[0]:02d}.pth: lacks the tensor {name}")
        parts = [tensors[name] for tensors in ranks]
        yield _hf_name(name), _joined(name, parts, config.head_dim)


def _hf_name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, rest = name.partition("layers.")
    layer, _, own = rest.partition(".")
    return f"model.layers.{layer}.{LAYER[own]}" if own in LAYER else name


def _joined(name: str, parts: list[Tensor], head_dim: int) -> Lazy:
    """One tensor from its model-parallel parts."""
    first = parts[0]
    if len(first.shape) == 1:
        return lazy(first)
    if name.endswith(BY_COLUMNS):
        shape = (first.shape[0], sum(part.shape[1] for part in parts))
        return Lazy(first.dtype, shape, lambda a, b: torch.cat([p[a:b] for p in parts], dim=1))
    turned = name.endswith(("wq.weight", "wk.weight")) and first.shape[0] % head_dim == 0
    order = torch.arange(first.shape[0])
    if turned:
        order = order.view(-1, head_dim // 2, 2).transpose(1, 2).flatten()
    return _stacked(parts, order)


def _stacked(parts: list[Tensor], order: Tensor) -> Lazy:
    """Parts one under another, the rows of each taken in `order`."""
    size = len(order)

    def rows(start: int, stop: int) -> Tensor:
        spans = [(max(start - i * size, 0), min(stop - i * size, size)) for i in range(len(parts))]
        taken = [p[order[a:b]] for p, (a, b) in zip(parts, spans, strict=True) if a < b]
        return torch.cat(taken)

    return Lazy(parts[0].dtype, (size * len(parts), *parts[0].shape[1:]), rows)
