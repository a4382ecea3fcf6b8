"""Stored 4-, 8-bit and fp8 weights, read as plain floating-point tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llamaseek.herd.formats import BLOCK, PACKED, PACKED_SCALE, PACKED_SHAPE, SCALE
from llamaseek.kernels import ops as _ops  # noqa: F401  defines the operators
from llamaseek.kernels.fp8 import dequantize_fp8
from llamaseek.kernels.packed import dequantize_packed
from llamaseek.models.lazy import Lazy
from llamaseek.models.quant.fp8 import check_scale
from llamaseek.models.quant.packed import WORD


def dequantized(tensors: dict[str, Lazy], dtype: torch.dtype) -> dict[str, Lazy]:
    """Every fp8 matrix, and every one of a GGUF file's quantized blocks, as a plain one; scales
    leave."""
    found = {}
    for name, tensor in tensors.items():
        if getattr(tensor, "blocks", None) is not None:
            found[name] = tensor.cast(dtype)
        elif tensor.dtype == torch.float8_e4m3fn:
            found[name] = _lazily(name, tensor, tensors[name + SCALE], dtype)
        elif not name.endswith(SCALE):
            found[name] = tensor
    return found


def _lazily(name: str, weight: Lazy, scale: Lazy, dtype: torch.dtype) -> Lazy:
    def rows(start: int, stop: int) -> Tensor:
        needed = scale.rows(start // BLOCK, -(-stop // BLOCK)).float()
        check_scale(name + SCALE, needed)
        return dequantize_fp8(weight.rows(start, stop), needed, dtype)

    return Lazy(dtype, weight.shape, rows)


def widened(tensors: Mapping[str, Lazy], dtype: torch.dtype) -> dict[str, Lazy]:
    """Every packed matrix as a plain one; scales and shapes leave."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(PACKED):
            base = name.removesuffix(PACKED)
            found[base + ".weight"] = _unpacked(tensor, tensors, base, dtype)
        elif not name.endswith((PACKED_SCALE, PACKED_SHAPE)):
            found[name] = tensor
    return found


def _unpacked(words: Lazy, tensors: Mapping[str, Lazy], base: str, dtype: torch.dtype) -> Lazy:
    scale = tensors[base + PACKED_SCALE]
    width = int(tensors[base + PACKED_SHAPE].rows(0, 2)[1])
    bits = words.shape[1] * WORD // width

    def rows(start: int, stop: int) -> Tensor:
        return dequantize_packed(words.rows(start, stop), scale.rows(start, stop), bits, dtype)

    return Lazy(dtype, (words.shape[0], width), rows)
