"""Rows of numbers into blocks of GGUF's types.

The `gguf` package writes the types of 32 numbers a block; those of 256, Q4_K and Q6_K, are made
here. Layouts: llama.cpp `ggml/src/ggml-common.h`; the searches for scales are plain least squares.

N rows, K columns, B blocks, S parts of a block that have a scale of their own.
"""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from torch import Tensor

TINY = 1e-12
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
    codes of 4 bits."""
    parts = blocks.view(-1, 8, 32)
    scale, low = _scales_and_minima(parts)
    d, scales = _six_bits(scale)
    dmin, minima = _six_bits(low)
    step = (d[:, None] * scales)[..., None]
    shifted = parts + (dmin[:, None] * minima)[..., None]
    codes = torch.where(step > 0, shifted / step, torch.zeros(())).round_().clamp_(0, 15)
    codes = codes.to(torch.uint8).view(-1, 4, 2, 32)
    packed = (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)
    return np.concatenate(
        (_half(d), _half(dmin), _pack_scales(scales, minima), packed.numpy()), axis=1
    )


def q6_k(blocks: Tensor) -> np.ndarray:
    """(B, 256) as blocks of 210 bytes: 4 and 2 bits of every code, 16 scales of 8 bits, a float16
    scale."""
    parts = blocks.view(-1, 16, 16)
    scale = _symmetric_scales(parts, 32)
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


def _scales_and_minima(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, S, 32): the scale and the amount below zero with the least weighted squared error.

    Large numbers weigh more. Codes from 0 to 15 follow from a trial scale; scale and minimum are
    then fitted to them; the best of 21 trials stays.
    """
    weight = parts.square().mean(-1, keepdim=True).sqrt() + parts.abs()
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


def _symmetric_scales(parts: Tensor, most: int) -> Tensor:
    """Of (B, S, 16): the scale with the least error for codes from -most to most - 1; each square
    weighs as its number's."""
    at = parts.abs().argmax(-1, keepdim=True)
    largest = parts.gather(-1, at)
    safe = torch.where(largest == 0, torch.full((), TINY), largest)
    weight = parts.square()
    best, score = torch.zeros_like(largest), torch.full_like(largest, -1.0)
    for trial in (0, *range(-9, 0), *range(1, 10)):
        codes = (parts * (-(most + 0.1 * trial) / safe)).round().clamp(-most, most - 1)
        cross = (weight * codes * parts).sum(-1, keepdim=True)
        two = (weight * codes * codes).sum(-1, keepdim=True)
        gained = cross.square() / two.clamp(min=TINY)
        better = gained > score
        best = torch.where(better, cross / two.clamp(min=TINY), best)
        score = torch.where(better, gained, score)
    return torch.where(largest == 0, torch.zeros(()), best)[..., 0]


def _six_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 8) numbers of at least 0 as a float16 step (B, 1 dropped) and codes up to 63."""
    step = (values.amax(1) / 63).half().float()
    codes = torch.where(step[:, None] > 0, values / step[:, None], torch.zeros(()))
    return step, codes.round_().clamp_(0, 63)


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
