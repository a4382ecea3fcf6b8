"""Rows on their way to experts in fp8, as DeepSeek-V3 sends and keeps them (report §3.3.3).

e4m3 numbers with one float32 scale for 128 of them take 1.03 bytes a number in place of 2. Scales
are powers of two, so that widening is exact. Results and all gradients travel as they are. N rows,
D width, G groups of 128.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llamaseek.models.fp8 import FP8_MAX
from llamaseek.parallel.collectives import all_to_all

GROUP = 128


def narrow(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, D) → e4m3 numbers (N, D), a group's largest over 224, and float32 scales (N, G)."""
    groups = x.unflatten(1, (-1, GROUP))
    most = groups.abs().amax(-1).to(torch.float32).clamp(min=1e-12)
    scale = (most / FP8_MAX).log2().ceil().exp2()
    numbers = groups / scale[:, :, None].to(x.dtype)
    return numbers.flatten(1).to(torch.float8_e4m3fn), scale


def widened(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The other way: (N, D) in `dtype`."""
    groups = numbers.to(dtype).unflatten(1, (-1, GROUP))
    return (groups * scale[:, :, None].to(dtype)).flatten(1)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        numbers, scale = narrow(x)
        # As bytes, which every backend sends.
        came = all_to_all(numbers.view(torch.uint8), sent, received, group)
        scales = all_to_all(scale, sent, received, group)
        return widened(came.view(torch.float8_e4m3fn), scales, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return all_to_all(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def exchange_in_fp8(
    x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    """`collectives.exchange` of rows (N, D), D a multiple of 128, rounded to fp8 on the way there.

    Their gradients come back in x's dtype, as if nothing had been rounded.
    """
    return _Dispatch.apply(x, sent, received, group)  # type: ignore[no-any-return]
