"""Whether the tensors that a folder stores are those its config asks for. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamaseek.files import is_gguf
from llamaseek.herd.configs import ModelConfig, Shape
from llamaseek.herd.formats import (
    FLOATS,
    FP8,
    GROUPS,
    PACKED,
    PACKED_SCALE,
    PACKED_SHAPE,
    SCALE,
    WORD,
    scale_shape,
)
from llamaseek.herd.grouped import QWEIGHT, grouped_dtypes, grouped_shapes
from llamaseek.herd.header import StoredTensor
from llamaseek.herd.tensors import model_tensors


@dataclass(frozen=True)
class FolderProblem:
    """One tensor that is not as the config asks; `kind`: missing, unexpected, shape or dtype."""

    kind: str
    name: str
    message: str


def problems(
    config: ModelConfig, stored: dict[str, StoredTensor], folder: Path
) -> Iterator[FolderProblem]:
    """Every difference, in the config's order, then what it does not know."""
    wanted = dict(model_tensors(config))
    scales = {f"{name}{SCALE}" for name in wanted if name in stored and stored[name].dtype == FP8}
    for name in scales:
        wanted[name] = scale_shape(stored[name.removesuffix(SCALE)].shape)
    packed = {
        base: shape
        for name, shape in wanted.items()
        if (base := name.removesuffix(".weight")) + PACKED in stored
    }
    for base, shape in packed.items():
        del wanted[base + ".weight"]
        yield from _packed_problems(base, shape, stored, folder)
        wanted[base + PACKED_SHAPE] = (2,)
    known = {base + suffix for base in packed for suffix in (PACKED, PACKED_SCALE)}
    grouped = [name for name in wanted if name.removesuffix(".weight") + QWEIGHT in stored]
    for name in grouped:
        shapes = grouped_shapes(name.removesuffix(".weight"), wanted.pop(name), stored)
        for part, shape in shapes.items():
            yield from _stored_problems(part, shape, stored, folder)
        known |= set(shapes)
    for name, shape in wanted.items():
        if name not in stored:
            yield FolderProblem("missing", name, f"{folder}: lacks the tensor {name}")
        elif stored[name].shape != shape:
            yield FolderProblem("shape", name, _shapes(stored[name], shape))
        elif not stored[name].is_float and not name.endswith(PACKED_SHAPE):
            found = stored[name]
            message = f"{found.path}: {name} is {found.dtype}; allowed: {', '.join(FLOATS)}"
            yield FolderProblem("dtype", name, message)
    for name, found in stored.items():
        if name not in wanted and name not in known and not is_second_copy(config, name):
            message = f"{found.path}: has a tensor the model lacks: {name}"
            yield FolderProblem("unexpected", name, message)


def _stored_problems(
    name: str, shape: Shape, stored: dict[str, StoredTensor], folder: Path
) -> Iterator[FolderProblem]:
    """What is wrong with one tensor of a matrix of GPTQ or AWQ."""
    if name not in stored:
        yield FolderProblem("missing", name, f"{folder}: lacks the tensor {name}")
    elif stored[name].shape != shape:
        yield FolderProblem("shape", name, _shapes(stored[name], shape))
    else:
        for message in grouped_dtypes(name, stored[name]):
            yield FolderProblem("dtype", name, message)


def _packed_problems(
    base: str, shape: Shape, stored: dict[str, StoredTensor], folder: Path
) -> Iterator[FolderProblem]:
    """What is wrong with the words and scales of one matrix of `shape`."""
    words, name = stored[base + PACKED], base + PACKED_SCALE
    rows, inputs = shape
    if words.dtype != "I32" or words.shape not in {(rows, inputs * b // WORD) for b in (4, 8)}:
        message = (
            f"{words.path}: {words.name} is {words.dtype} {list(words.shape)}; allowed for "
            f"{list(shape)}: I32, 4 or 8 bits a weight"
        )
        yield FolderProblem("shape", words.name, message)
    if name not in stored:
        yield FolderProblem("missing", name, f"{folder}: lacks the tensor {name}")
        return
    scale = stored[name]
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    whole = groups > 0 and scale.shape[0] == rows and inputs % groups == 0
    if not whole or groups > 1 and inputs // groups not in GROUPS or scale.dtype != "BF16":
        message = (
            f"{scale.path}: {name} is {scale.dtype} {list(scale.shape)}; allowed for "
            f"{list(shape)}: BF16, one a row or a group of {', '.join(map(str, GROUPS))}"
        )
        yield FolderProblem("shape", name, message)


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


def _shapes(found: StoredTensor, wanted: Shape) -> str:
    asking = "its metadata" if is_gguf(found.path) else "config.json"
    shapes = f"has shape {list(found.shape)}, {asking} asks for {list(wanted)}"
    return f"{found.path}: {found.name} {shapes}"
