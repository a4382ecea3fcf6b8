"""LoRA adapters as PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.

PEFT (developer guide "checkpoint") writes a layer's matrices as
`base_model.model.<layer>.lora_A.weight` (r, I) and `…lora_B.weight` (O, r).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamaseek.checkpoints.hub import parse_name
from llamaseek.checkpoints.shards import open_tensors, write_tensors
from llamaseek.errors import UserError, bad_value
from llamaseek.files import read_json_object, write_json
from llamaseek.herd.header import read_header
from llamaseek.models.lazy import Lazy, lazy
from llamaseek.models.lora import LoRALinear, adapt

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False}
HALVES = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Adapter:
    """One adapter at hand: its rank, alpha, and per layer A (r, I) and B (O, r), float32."""

    rank: int
    alpha: float
    scaling: float
    pairs: dict[str, tuple[Tensor, Tensor]]


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a PEFT folder.

    Raises `UserError` for a missing or broken file, a kind of adapter other than plain LoRA (or
    rank-stabilised LoRA), and a layer that lacks one of its matrices.
    """
    path = folder / CONFIG
    config = read_json_object(path)
    for key, value in PLAIN.items():
        if config.get(key, value) != value:
            raise bad_value(f"{path} {key}", config[key], repr(value))
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters"):
        if config.get(key):
            raise bad_value(f"{path} {key}", config[key], "nothing")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1:
        raise bad_value(f"{path} r", rank, "an integer of at least 1")
    if not isinstance(alpha, int | float):
        raise bad_value(f"{path} lora_alpha", alpha, "a number")
    scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return Adapter(rank, alpha, scaling, _pairs(folder / WEIGHTS, rank))


def _pairs(path: Path, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    tensors = open_tensors({stored.name: stored for stored in read_header(path)})
    if other := [name for name in tensors if not name.endswith(HALVES)]:
        raise UserError(f"{path}: holds {other[0]}, which is not a LoRA matrix")
    layers = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}
    found = {}
    for layer in sorted(layers):
        names = [f"{PREFIX}{layer}.lora_{half}.weight" for half in "AB"]
        if missing := [name for name in names if name not in tensors]:
            raise UserError(f"{path}: lacks the tensor {missing[0]}")
        a, b = (_read(tensors[name]) for name in names)
        if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == rank:
            raise UserError(f"{path}: {layer} has a rank other than the {rank} of {CONFIG}")
        found[layer] = (a, b)
    return found


def _read(tensor: Lazy) -> Tensor:
    whole = torch.empty(tensor.shape)
    tensor.copy_to(whole)
    return whole


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Adapt `model` in place with a PEFT folder's adapter; its base is frozen."""
    adapter = read_adapter(folder)
    layers = dict(model.named_modules())
    for layer in adapter.pairs:
        if not isinstance(layers.get(layer), nn.Linear):
            raise UserError(f"{folder}: adapts {layer}, which is not a linear layer of the model")
    adapt(model, list(adapter.pairs), adapter.rank, adapter.alpha)
    _fill(model, adapter, folder)


def _fill(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    for layer, (a, b) in adapter.pairs.items():
        adapted = model.get_submodule(layer)
        assert isinstance(adapted, LoRALinear)
        for half, name in ((a, adapted.lora_A.weight), (b, adapted.lora_B.weight)):
            if half.shape != name.shape:
                shapes = f"{list(half.shape)}, the model asks for {list(name.shape)}"
                raise UserError(f"{folder}: {layer} has a LoRA matrix of shape {shapes}")
            name.data.copy_(half)
        adapted.scaling = adapter.scaling


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter that a model has, its matrices as they are there."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    first = next(iter(layers.values()))
    rank = first.lora_A.out_features
    pairs = {n: (m.lora_A.weight.detach(), m.lora_B.weight.detach()) for n, m in layers.items()}
    return Adapter(rank, first.scaling * rank, first.scaling, pairs)


def save_adapter(model: nn.Module, folder: Path, base: str) -> None:
    """Write a model's adapters as a PEFT folder; `base` is the base model's folder or name.

    Of a reward model it holds `score` as well, which is trained whole beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter, hub = adapter_of(model), None if Path(base).exists() else parse_name(base)
    config: dict[str, Any] = {
        **PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub.repo if hub else base,
        "revision": hub.revision if hub else None,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
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
    write_json(folder / CONFIG, config)
    write_tensors(folder, tensors, single=WEIGHTS)


def merged(tensors: dict[str, Lazy], adapter: Adapter, folder: Path) -> dict[str, Lazy]:
    """A folder's tensors with an adapter folded in: W + scaling · B A, a few rows at a time."""
    found = dict(tensors)
    for layer, (a, b) in adapter.pairs.items():
        name = f"{layer}.weight"
        shape = (b.shape[0], a.shape[1])
        if name not in tensors:
            raise UserError(f"{folder}: adapts {layer}, which the model does not have")
        if tensors[name].shape != shape:
            sizes = f"{list(shape)}, the model's is {list(tensors[name].shape)}"
            raise UserError(f"{folder}: adapts {layer} as a matrix of shape {sizes}")
        found[name] = _merged(tensors[name], a, b, adapter.scaling)
    return found


def _merged(weight: Lazy, a: Tensor, b: Tensor, scaling: float) -> Lazy:
    def rows(start: int, stop: int) -> Tensor:
        return weight.rows(start, stop).float() + scaling * (b[start:stop] @ a)

    return Lazy(weight.dtype, weight.shape, rows)
