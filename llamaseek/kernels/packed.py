"""Weights of 4 and 8 bits: the layout, made, taken apart, and widened.

A weight (N, K) is stored as whole numbers of `bits` bits, zero at 2^(bits - 1), side by side in
int32 words, lowest bits first; each group of inputs of a row has a bf16 scale, or the whole row
has one. It is the layout "pack-quantized" of compressed-tensors, which other software reads.

N rows, K inputs, W = K × bits / 32 words, G groups of a row (1: a scale a row).
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes (..., K) uint8 below 2^bits → int32 words (..., W). K is a multiple of 32 / bits."""
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return codes.contiguous().view(torch.int32)


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 words (..., W) → codes (..., K) uint8."""
    codes = words.contiguous().view(torch.uint8)
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    return codes


def dequantize_packed(words: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """words (..., N, W), scales (..., N, G) → weights (..., N, K) in `dtype`."""
    centered = unpack(words, bits).to(torch.float32) - 2 ** (bits - 1)
    groups = centered.unflatten(-1, (scales.shape[-1], -1))
    return (groups * scales.float()[..., None]).flatten(-2).to(dtype)
