"""Rows of numbers into blocks of GGUF's types.

The `gguf` package writes the types of 32 numbers a block, by llama.cpp's rules: in Q4_0 a search
for scales lowers the squared error by a fifth, and perplexity not at all. Those of 256, Q4_K and
Q6_K, are made here. Layouts: llama.cpp `ggml/src/ggml-common.h`; the searches are plain least
squares.

N rows, K columns, B blocks, S parts of a block that have a scale of their own.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from torch import Tensor

from llamaseek.models.quant.rounding import TINY, symmetric_scales

AT_ONCE = 512  # blocks; what they need stays in one core's cache
FLOATS = {
    Kind.F32: (torch.float32, torch.int32),
    Kind.F16: (torch.float16, torch.int16),
    Kind.BF16: (torch.bfloat16, torch.int16),
}
"""Types without blocks, and whole numbers of the same width."""


def encode(rows: Tensor, kind: Kind) -> bytes:
    """(N, K) in any float type as the bytes of `kind`; OverflowError beyond float16's range."""
    if kind in FLOATS:
        dtype, same = FLOATS[kind]
        made = rows.to(dtype)
        if kind == Kind.F16 and not torch.equal(made.isfinite(), rows.isfinite()):
            raise OverflowError("numbers beyond 65,504")
        return made.contiguous().view(same).numpy().tobytes()
    if kind in OF_256:
        blocks = rows.float().reshape(-1, 256).split(AT_ONCE)
        return b"".join(OF_256[kind](some).tobytes() for some in blocks)
    return quantize(rows.float().contiguous().numpy(), kind).tobytes()


def q4_k(blocks: Tensor) -> np.ndarray:
    """(B, 256) as blocks of 144 bytes: two float16 scales, 8 scales and 8 minima of 6 bits,
    codes of 4 bits. Large numbers weigh more."""
    parts = blocks.view(-1, 8, 32)
    weight = parts.square().mean(-1, keepdim=True).sqrt() + parts.abs()
    scale, low = _scales_and_minima(parts, weight)
    (d, scales), (dmin, minima) = _six_bits(scale), _six_bits(low)
    scales, minima = _neighbours(parts, weight, (d, dmin), (scales, minima))
    d, dmin = _steps(parts, weight, (d, dmin), (scales, minima))
    codes, _ = _codes(parts, weight, d * scales, dmin * minima)
    codes = codes.to(torch.uint8).view(-1, 4, 2, 32)
    packed = (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)
    return np.concatenate(
        (_half(d.flatten()), _half(dmin.flatten()), _pack_scales(scales, minima), packed.numpy()),
        axis=1,
    )


def q6_k(blocks: Tensor) -> np.ndarray:
    """(B, 256) as blocks of 210 bytes: 4 and 2 bits of every code, 16 scales of 8 bits, a float16
    scale."""
    parts = blocks.view(-1, 16, 16)
    scale = symmetric_scales(parts, 32, parts.square())[..., 0]
    largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    d = (largest / -128).half().float()
    scales = torch.where(d != 0, scale / d, torch.zeros(())).round_().clamp_(-128, 127)
    step = (d * scales)[..., None]
    codes = torch.where(step != 0, parts / step, torch.zeros(())).round_().clamp_(-32, 31)
    codes = (codes + 32).to(torch.uint8).view(-1, 2, 4, 32)
    low = torch.cat(
        (codes[:, :, 0] & 15 | codes[:, :, 2] << 4, codes[:, :, 1] & 15 | codes[:, :, 3] << 4), 2
    )
    high = codes >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate(
        (
            low.flatten(1).numpy(),
            high.flatten(1).numpy(),
            scales.to(torch.int8).numpy().view(np.uint8),
            _half(d[:, 0]),
        ),
        axis=1,
    )


def _scales_and_minima(parts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, S, 32): the scale and the amount below zero with the least weighted squared error.

    Codes from 0 to 15 follow from a trial scale; scale and minimum are then fitted to them; the
    best of 21 trials stays.
    """
    low = parts.amin(-1, keepdim=True).clamp(max=0)
    span = (parts.amax(-1, keepdim=True) - low).clamp(min=TINY)
    best = (span / 15, low)
    least = _error(parts, weight, (parts - low).div(best[0]).round().clamp(0, 15), *best)
    total, total_x = weight.sum(-1, keepdim=True), (weight * parts).sum(-1, keepdim=True)
    for trial in range(21):
        codes = ((parts - low) * ((14 + 0.1 * trial) / span)).round().clamp(0, 15)
        one = (weight * codes).sum(-1, keepdim=True)
        two = (weight * codes * codes).sum(-1, keepdim=True)
        cross = (weight * codes * parts).sum(-1, keepdim=True)
        below = total * two - one * one
        scale = (total * cross - total_x * one) / below.clamp(min=TINY)
        start = (two * total_x - one * cross) / below.clamp(min=TINY)
        above = start > 0  # a minimum is only ever taken away
        scale = torch.where(above, cross / two.clamp(min=TINY), scale)
        start = start.clamp(max=0)
        error = _error(parts, weight, codes, scale, start)
        better = (error < least) & (below > 0) & (scale > 0)
        best = (torch.where(better, scale, best[0]), torch.where(better, start, best[1]))
        least = torch.where(better, error, least)
    return best[0][..., 0], -best[1][..., 0]


def _error(parts: Tensor, weight: Tensor, codes: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    return (weight * (codes * scale + low - parts).square()).sum(-1, keepdim=True)


def _six_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) numbers of at least 0 as a float16 step (B, 1) and codes up to 63."""
    step = (values.amax(1, keepdim=True) / 63).half().float()
    codes = torch.where(step > 0, values / step, torch.zeros(()))
    return step, codes.round_().clamp_(0, 63)


Pair = tuple[Tensor, Tensor]
"""Of scales and minima: their steps d and dmin (B, 1), or their codes of 6 bits (B, S)."""


def _codes(parts: Tensor, weight: Tensor, scale: Tensor, low: Tensor) -> Pair:
    """Codes (B, S, 32) from 0 to 15 for scales and minima (B, S), and each part's error (B, S)."""
    scale, low = scale[..., None], low[..., None]
    codes = torch.where(scale > 0, (parts + low) / scale, torch.zeros(())).round_().clamp_(0, 15)
    return codes, _error(parts, weight, codes, scale, -low)[..., 0]


def _neighbours(parts: Tensor, weight: Tensor, steps: Pair, codes: Pair) -> Pair:
    """Of each part's scale and minimum and those one step away, the pair with the least error:
    rounding each to 6 bits alone does not see the other."""
    (d, dmin), best = steps, codes
    _, least = _codes(parts, weight, d * codes[0], dmin * codes[1])
    for more, lower in product((-1, 0, 1), repeat=2):
        scales, minima = (codes[0] + more).clamp(0, 63), (codes[1] + lower).clamp(0, 63)
        _, error = _codes(parts, weight, d * scales, dmin * minima)
        better = error < least
        best = (torch.where(better, scales, best[0]), torch.where(better, minima, best[1]))
        least = torch.where(better, error, least)
    return best


def _steps(parts: Tensor, weight: Tensor, steps: Pair, codes: Pair) -> Pair:
    """The float16 steps that fit all numbers of a block best, where they lower its error."""
    (d, dmin), (scales, minima) = steps, codes
    found, error = _codes(parts, weight, d * scales, dmin * minima)
    one, two = scales[..., None] * found, -minima[..., None].expand_as(found)

    def total(x: Tensor) -> Tensor:
        return (weight * x).sum((1, 2))[:, None]

    aa, ab, bb = total(one * one), total(one * two), total(two * two)
    ax, bx = total(one * parts), total(two * parts)
    below = (aa * bb - ab * ab).clamp(min=TINY)
    fitted = [((bb * ax - ab * bx) / below), ((aa * bx - ab * ax) / below)]
    new_d, new_dmin = (x.half().float() for x in fitted)
    _, changed = _codes(parts, weight, new_d * scales, new_dmin * minima)
    better = changed.sum(1, keepdim=True) < error.sum(1, keepdim=True)
    better &= (new_d > 0) & (new_dmin >= 0)
    return torch.where(better, new_d, d), torch.where(better, new_dmin, dmin)


def _pack_scales(scales: Tensor, minima: Tensor) -> np.ndarray:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    s, m = scales.to(torch.uint8), minima.to(torch.uint8)
    first, second = s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6
    third = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return torch.cat((first, second, third), 1).numpy()


def _half(values: Tensor) -> np.ndarray:
    """(B) float16 numbers as (B, 2) bytes."""
    return values.half().numpy().view(np.uint8).reshape(-1, 2)


OF_256 = {Kind.Q4_K: q4_k, Kind.Q6_K: q6_k}
