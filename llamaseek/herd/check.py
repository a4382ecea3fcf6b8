"""Whether the tensors that a folder stores are those its config asks for. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.stored import Stored
from llamaseek.herd.tensors import Shape, model_tensors

SCALE = "_scale_inv"
FP8 = "F8_E4M3"
BLOCK = 128  # rows and columns that share a scale (DeepSeek-V3 report §3.3.2)
FLOATS = ("F64", "F32", "F16", "BF16", FP8)


@dataclass(frozen=True)
class Problem:
    """One tensor that is not as the config asks; `kind`: missing, unexpected, shape or dtype."""

    kind: str
    name: str
    message: str


def problems(config: ModelConfig, stored: dict[str, Stored], folder: Path) -> Iterator[Problem]:
    """Every difference, in the config's order, then what it does not know."""
    wanted = dict(model_tensors(config))
    scales = {f"{name}{SCALE}" for name in wanted if name in stored and stored[name].dtype == FP8}
    for name in scales:
        wanted[name] = scale_shape(stored[name.removesuffix(SCALE)].shape)
    for name, shape in wanted.items():
        if name not in stored:
            yield Problem("missing", name, f"{folder}: lacks the tensor {name}")
        elif stored[name].shape != shape:
            yield Problem("shape", name, _shapes(stored[name], shape))
        elif stored[name].dtype not in FLOATS:
            found = stored[name]
            message = f"{found.path}: {name} is {found.dtype}; allowed: {', '.join(FLOATS)}"
            yield Problem("dtype", name, message)
    for name, found in stored.items():
        if name not in wanted and not is_second_copy(config, name):
            message = f"{found.path}: has a tensor the model lacks: {name}"
            yield Problem("unexpected", name, message)


def scale_shape(weight: Shape) -> Shape:
    """Scales of an fp8 matrix: one for every block of 128 × 128, the last ones smaller."""
    return tuple(-(-size // BLOCK) for size in weight)


def is_second_copy(config: ModelConfig, name: str) -> bool:
    """Shared tensors that some folders write again, and rotary tables that none needs."""
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    if name.endswith("rotary_emb.inv_freq"):
        return True
    extra = name.startswith("model.layers.") and name.endswith(
        (".embed_tokens.weight", ".shared_head.head.weight")
    )
    return extra and int(name.split(".")[2]) >= config.num_hidden_layers


def _shapes(found: Stored, wanted: Shape) -> str:
    return (
        f"{found.path}: {found.name} has shape {list(found.shape)}, "
        f"config.json asks for {list(wanted)}"
    )
