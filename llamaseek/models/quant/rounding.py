"""Weights rounded to whole numbers and scales: the searches that every format's writer shares.

The rule without data is least squares: of a few trial scales, the codes that leave the least
squared error stay, with the scale that fits them best. `weight` says how much each number's error
counts; calibration gives the mean square of the input that the number multiplies.

S groups, G numbers of a group; N rows, K inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.kernels.packed import pack

TINY = 1e-12


def symmetric_scales(
    groups: Tensor, most: int, weight: Tensor | None = None, trials: int = 19
) -> Tensor:
    """Of (..., G): the scale (..., 1) with the least error for codes from -most to most - 1.

    The number farthest from zero falls near code -most, so that a scale may be negative: the
    larger half of the codes is on the side of the largest number (as in llama.cpp's Q4_0).
    """
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    safe = torch.where(largest == 0, torch.full((), TINY), largest)
    best, score = torch.zeros_like(largest), torch.full_like(largest, -1.0)
    for trial in range(trials):
        near = most + 0.9 * (2 * trial / (trials - 1) - 1)
        codes = (groups * (-near / safe)).round_().clamp_(-most, most - 1)
        weighted = codes if weight is None else codes * weight
        cross = (weighted * groups).sum(-1, keepdim=True)
        two = (weighted * codes).sum(-1, keepdim=True).clamp_(min=TINY)
        gained = cross.square() / two
        better = gained > score
        best = torch.where(better, cross / two, best)
        score = torch.where(better, gained, score)
    return torch.where(largest == 0, torch.zeros(()), best)


def codes_of(groups: Tensor, scale: Tensor, most: int) -> Tensor:
    """(..., G) over a scale (..., 1) as whole numbers from -most to most - 1, in float32."""
    safe = torch.where(scale == 0, torch.ones(()), scale)
    return (groups / safe).round_().clamp_(-most, most - 1)


def packed_scales(groups: Tensor, bits: int, weight: Tensor | None = None) -> Tensor:
    """The bf16 scales (..., 1) that `groups` (..., G) are stored with in 4 or 8 bits."""
    if bits == 8:
        return (groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127).bfloat16()
    return symmetric_scales(groups, 8, weight, 7).bfloat16()


def quantize(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """weight (..., N, K) → words (..., N, W) and bf16 scales (..., N, K / group); group 0: a scale
    a row. K is a multiple of the group and of 32 / bits.
    """
    most = 2 ** (bits - 1)
    groups = weight.float().unflatten(-1, (-1, group or weight.shape[-1]))
    scale = packed_scales(groups, bits)
    codes = codes_of(groups, scale.float(), most)
    words = pack((codes + most).to(torch.uint8).flatten(-2), bits)
    return words, scale[..., 0].contiguous()
