"""LoRA adapters as PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.

PEFT (developer guide "checkpoint") writes a layer's matrices as
`base_model.model.<layer>.lora_A.weight` (r, I) and `…lora_B.weight` (O, r).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamaseek.checkpoints.adapter_config import CONFIG, AdapterConfig, read_adapter_config
from llamaseek.checkpoints.hub import parse_name
from llamaseek.checkpoints.shards import open_tensors, write_tensors
from llamaseek.checkpoints.sources import name_of
from llamaseek.errors import UserError
from llamaseek.files import write_json
from llamaseek.herd.header import read_header
from llamaseek.models.lazy import Lazy, lazy
from llamaseek.models.lora import LoRALinear

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False}
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# The endings of tensors' names: A and B of a layer and of an embedding, DoRA's magnitudes, rows of
# single tokens, and the base of an adapted embedding, which peft stores again.
A, B, EMBEDDED_A, EMBEDDED_B = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_embedding_A",
    ".lora_embedding_B",
)
MAGNITUDE, TOKENS, BASE = (
    ".lora_magnitude_vector",
    ".token_adapter.trainable_tokens_delta",
    ".base_layer.weight",
)
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Adapter:
    """One adapter at hand: its rank, alpha, and per layer A (r, I) and B (O, r), float32.

    A layer whose scaling differs (`rank_pattern`, `alpha_pattern`) has the difference in its B.
    """

    rank: int
    alpha: float
    scaling: float
    pairs: dict[str, Pair]
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    """Of DoRA: the norms of the rows of the adapted matrix, (O) a layer."""
    embeddings: dict[str, Pair] = field(default_factory=dict)
    """Of embeddings: A (r, V) and B (D, r), scaled; the product is added turned."""
    tokens: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Ids (N) and rows (N, D) of an embedding or head of which single rows were trained."""
    bases: dict[str, Lazy] = field(default_factory=dict)
    """Weights that the base had, stored again."""
    saved: dict[str, Lazy] = field(default_factory=dict)
    """Tensors trained whole (`modules_to_save`), by their names in the model."""

    rslora: bool = False

    def beyond_layers(self) -> list[str]:
        """What is changed besides linear layers."""
        return [*self.embeddings, *self.tokens, *self.saved]

    def parts_head(self) -> bool:
        """Whether embedding and head, if they were one table, are two with this adapter.

        Rows of single tokens stay in both.
        """
        changed = {*self.pairs, *self.embeddings, *(n.removesuffix(".weight") for n in self.saved)}
        return bool({EMBEDDING, HEAD} & changed) or HEAD in self.tokens


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a PEFT folder: LoRA, rank-stabilized or with magnitudes (DoRA), of layers,
    embedding and head, with modules saved whole and rows of single tokens.

    Raises `UserError` for a missing or broken file, for a key of the config that is not understood,
    and for a layer that lacks one of its matrices.
    """
    config, path = read_adapter_config(folder), folder / WEIGHTS
    stored = open_tensors({stored.name: stored for stored in read_header(path)})
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    scaling = config.scaling()

    def factor(layer: str) -> float:
        return config.scaling(layer) / scaling if scaling else 0.0

    pairs = _pairs(config, tensors, A, B)
    embeddings = _pairs(config, tensors, EMBEDDED_A, EMBEDDED_B)
    magnitudes = {
        layer: _read(tensors.pop(name)).flatten()
        for name in list(tensors)
        if (layer := name.removesuffix(".weight").removesuffix(MAGNITUDE)) + MAGNITUDE
        in (name, name.removesuffix(".weight"))
    }
    _check_magnitudes(config, magnitudes, pairs)
    tokens = {
        layer: _token_rows(config, layer, tensors.pop(layer + TOKENS))
        for layer in [n.removesuffix(TOKENS) for n in tensors if n.endswith(TOKENS)]
    }
    bases = {
        name.removesuffix(BASE): tensors.pop(name) for name in list(tensors) if name.endswith(BASE)
    }
    for name in tensors:
        if ".lora_" in name or ".token_adapter." in name:
            raise UserError(f"{path}: holds {name}, which is not understood")
    return Adapter(
        rank=config.rank,
        alpha=config.alpha,
        scaling=scaling,
        pairs={n: (a, b if factor(n) == 1 else factor(n) * b) for n, (a, b) in pairs.items()},
        magnitudes=magnitudes,
        embeddings={n: (a, config.scaling(n) * b) for n, (a, b) in embeddings.items()},
        tokens=tokens,
        bases=bases,
        saved=tensors,
    )


def _pairs(config: AdapterConfig, tensors: dict[str, Lazy], a: str, b: str) -> dict[str, Pair]:
    """Takes the tensors with these endings: both matrices of each layer."""
    path = config.path.parent / WEIGHTS
    found = {}
    layers = {n.removesuffix(a).removesuffix(b) for n in tensors if n.endswith((a, b))}
    for layer in sorted(layers):
        for name in (layer + a, layer + b):
            if name not in tensors:
                raise UserError(f"{path}: lacks the tensor {PREFIX}{name}")
        first, second = (_read(tensors.pop(layer + end)) for end in (a, b))
        rank = config.rank_of(layer)
        if first.dim() != 2 or second.dim() != 2 or not first.shape[0] == second.shape[1] == rank:
            raise UserError(f"{path}: {layer} has a rank other than the {rank} of {CONFIG}")
        found[layer] = (first, second)
    return found


def _check_magnitudes(
    config: AdapterConfig, magnitudes: dict[str, Tensor], pairs: dict[str, Pair]
) -> None:
    path = config.path.parent / WEIGHTS
    if not config.dora and magnitudes:
        raise UserError(f"{path}: holds magnitudes, but {CONFIG} says no use_dora")
    for layer in magnitudes:
        if layer not in pairs:
            raise UserError(
                f"{path}: {layer}: use_dora is read of linear layers, not of embeddings"
            )
        if len(magnitudes[layer]) != len(pairs[layer][1]):
            raise UserError(f"{path}: {layer}{MAGNITUDE} has another length than the layer's rows")
    if config.dora and (without := [layer for layer in pairs if layer not in magnitudes]):
        raise UserError(f"{path}: lacks the tensor {PREFIX}{without[0]}{MAGNITUDE}")


def _token_rows(config: AdapterConfig, layer: str, rows: Lazy) -> tuple[Tensor, Tensor]:
    ids = torch.tensor(config.tokens_of(layer), dtype=torch.int64)
    if len(rows.shape) != 2 or len(ids) != rows.shape[0] or (len(ids) and int(ids.min()) < 0):
        raise UserError(
            f"{config.path}: trainable_token_indices names {len(ids)} rows of {layer}, "
            f"{WEIGHTS} holds {rows.shape[0]}"
        )
    return ids, _read(rows)


def _read(tensor: Lazy) -> Tensor:
    whole = torch.empty(tensor.shape)
    tensor.copy_to(whole)
    return whole


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter that a model has, its matrices as they are there."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    first = next(iter(layers.values()))
    rank = first.lora_A.out_features
    magnitudes = {
        name: module.lora_magnitude_vector.detach()
        for name, module in layers.items()
        if module.lora_magnitude_vector is not None
    }
    pairs = {n: (m.lora_A.weight.detach(), m.lora_B.weight.detach()) for n, m in layers.items()}
    alpha = first.scaling * (rank**0.5 if first.rslora else rank)
    return Adapter(rank, alpha, first.scaling, pairs, magnitudes, rslora=first.rslora)


def save_adapter(model: nn.Module, folder: Path, base: str) -> None:
    """Write a model's adapters as a PEFT folder; `base` is the base model's folder or name.

    Of a reward model it holds `score` as well, which is trained whole beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter, named = adapter_of(model), name_of(base)  # a path in a cache helps nobody else
    hub = None if Path(named).exists() else parse_name(named)
    config: dict[str, Any] = {
        **PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub.repo if hub else named,
        "revision": hub.revision if hub else None,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "use_rslora": adapter.rslora,
        "use_dora": bool(adapter.magnitudes),
        "target_modules": sorted({name.rpartition(".")[2] for name in adapter.pairs}),
        "inference_mode": True,
    }
    tensors = {}
    score = getattr(model, "score", None)
    if score is not None:
        config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        tensors[f"{PREFIX}score.weight"] = lazy(score.weight)
    for name, (a, b) in adapter.pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = lazy(a)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = lazy(b)
    for name, norms in adapter.magnitudes.items():
        tensors[f"{PREFIX}{name}{MAGNITUDE}"] = lazy(norms)
    write_json(folder / CONFIG, config)
    write_tensors(folder, tensors, single=WEIGHTS)
