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


def quantize(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """weight (..., N, K) → words (..., N, W) and bf16 scales (..., N, G); group 0: a scale a row.

    A scale maps a group's largest number onto the largest code; in 4 bits the best of a few
    smaller ones is taken, by squared error, since most groups gain more from a finer step than
    their largest number loses. K is a multiple of the group and of 32 / bits.
    """
    groups = weight.float().unflatten(-1, (-1, group or weight.shape[-1]))  # (..., N, G, group)
    zero = 2 ** (bits - 1)
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10)
    best_codes, best_scale, best_error = None, None, None
    for shrink in (1.0,) if bits == 8 else (1.0, 0.93, 0.86, 0.79):
        scale = (largest * shrink / (zero - 1 if bits == 8 else zero - 0.5)).bfloat16()
        codes = (groups / scale.float()).round().clamp(-zero, zero - 1)
        error = (codes * scale.float() - groups).square().sum(-1, keepdim=True)
        if best_codes is None or best_scale is None or best_error is None:
            best_codes, best_scale, best_error = codes, scale, error
            continue
        better = error < best_error
        best_codes = torch.where(better, codes, best_codes)
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    assert best_codes is not None and best_scale is not None
    words = pack((best_codes + zero).to(torch.uint8).flatten(-2), bits)
    return words, best_scale[..., 0].contiguous()
