"""A model's tensors as a GGUF file has them: the inverse of `read`, a few rows at a time.

H heads, N rows, K columns, C latent rank, P qk_nope_head_dim, V v_head_dim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from llamaseek.herd import ModelConfig, RopeScaling
from llamaseek.herd.configs import LatentWidths
from llamaseek.herd.gguf_tensors import (
    FREQUENCIES,
    KEY_PART,
    VALUE_PART,
    gguf_name,
    interleaved_heads,
)
from llamaseek.models.lazy import Lazy
from llamaseek.models.rope import inverse_frequencies

_FIRST_EXPERT = re.compile(r"(.+\.mlp\.experts)\.0\.(gate|up|down)_proj\.weight")
_EXPERT = re.compile(r".+\.mlp\.experts\.\d+\..+")


@dataclass(frozen=True)
class Outgoing:
    """One tensor of a file to be written: `pieces()` gives its rows, (n, K), in order."""

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Tensor]]


def outgoing(config: ModelConfig, tensors: dict[str, Lazy]) -> Iterator[Outgoing]:
    """Every tensor of a GGUF file, from a model's under Hugging Face's names."""
    if (scaling := config.rope_scaling) is not None and scaling.rope_type == "llama3":
        yield _frequencies(config, scaling)
    for name, tensor in tensors.items():
        if first := _FIRST_EXPERT.fullmatch(name):
            yield _experts(config, tensors, first[1], first[2])
        elif name.endswith("kv_b_proj.weight"):
            assert config.latents is not None
            yield from _latent_parts(config.num_attention_heads, config.latents, name, tensor)
        elif not _EXPERT.fullmatch(name):
            yield _plain(config, name, tensor)


def _plain(config: ModelConfig, name: str, tensor: Lazy) -> Outgoing:
    heads = interleaved_heads(config, name)
    pieces = (lambda: _interleaved(tensor, heads)) if heads else (lambda: _rows(tensor))
    return Outgoing(gguf_name(name), tensor.shape, pieces)


def _rows(tensor: Lazy) -> Iterator[Tensor]:
    for start, stop in tensor.pieces():
        rows = tensor.rows(start, stop)
        yield rows if rows.dim() > 1 else rows[None]


def _interleaved(tensor: Lazy, heads: int) -> Iterator[Tensor]:
    """The two halves of each head's rows in turn, row by row."""
    size = tensor.shape[0] // heads
    for start in range(0, tensor.shape[0], size):
        yield tensor.rows(start, start + size).view(2, size // 2, -1).transpose(0, 1).flatten(0, 1)


def _experts(config: ModelConfig, tensors: dict[str, Lazy], prefix: str, part: str) -> Outgoing:
    """All experts' matrices of a layer as one tensor."""
    names = [f"{prefix}.{e}.{part}_proj.weight" for e in range(config.num_experts)]
    shape = (len(names), *tensors[names[0]].shape)

    def pieces() -> Iterator[Tensor]:
        for name in names:
            yield from _rows(tensors[name])

    return Outgoing(gguf_name(names[0]), shape, pieces)


def _latent_parts(heads: int, widths: LatentWidths, name: str, tensor: Lazy) -> Iterator[Outgoing]:
    """`kv_b_proj` as keys (H, C, P), transposed, and values (H, V, C)."""
    rank, nope, value = widths.key_value, widths.plain, widths.value

    def keys() -> Iterator[Tensor]:
        for head in range(heads):
            start = head * (nope + value)
            yield tensor.rows(start, start + nope).T

    def values() -> Iterator[Tensor]:
        for head in range(heads):
            start = head * (nope + value) + nope
            yield tensor.rows(start, start + value)

    base = gguf_name(name).removesuffix("attn_kv_b.weight")
    yield Outgoing(base + KEY_PART, (heads, rank, nope), keys)
    yield Outgoing(base + VALUE_PART, (heads, value, rank), values)


def _frequencies(config: ModelConfig, scaling: RopeScaling) -> Outgoing:
    """What Llama 3.1's scaling divides each rotary frequency by."""
    plain = inverse_frequencies(config.rotary_width, config.rope_theta, None)
    divisors = plain / inverse_frequencies(config.rotary_width, config.rope_theta, scaling)
    return Outgoing(FREQUENCIES, tuple(divisors.shape), lambda: iter((divisors[None],)))
