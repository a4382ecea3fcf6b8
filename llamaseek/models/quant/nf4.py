"""Weights in 4-bit NormalFloat, for QLoRA (Dettmers et al. 2023 §3).

A weight is one of 16 levels, the quantiles of a normal distribution, times the largest magnitude
of its block of 64. O output width, I input width.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.models.layers import matmul_dtype

BLOCK = 64
OUTERMOST = 0.9677083  # the quantile that becomes ±1: 1 - (1/32 + 1/30) / 2


@cache
def levels() -> tuple[float, ...]:
    """The 16 levels in [-1, 1], 0 among them: seven below it, eight above."""
    quantile = NormalDist().inv_cdf
    above = [quantile(0.5 + (OUTERMOST - 0.5) * k / 8) for k in range(1, 9)]
    below = [-quantile(0.5 + (OUTERMOST - 0.5) * k / 7) for k in range(7, 0, -1)]
    largest = above[-1]
    return tuple(value / largest for value in (*below, 0.0, *above))


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, I) → codes, two a byte, uint8 (n / 2), and scales float32 (n / 64).

    n is O × I rounded up to a multiple of 64.
    """
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    normal = (blocks / scales.clamp(min=1e-12)[:, None]).flatten()
    table = torch.tensor(levels(), device=weight.device)
    codes = torch.bucketize(normal, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return codes[0::2] << 4 | codes[1::2], scales


def dequantize(codes: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight (O, I) that codes and scales stand for."""
    table = torch.tensor(levels(), device=codes.device)
    both = torch.stack((codes >> 4, codes & 15), 1).flatten().int()
    values = table[both].view(-1, BLOCK)
    values *= scales[:, None]
    return values.flatten()[: shape.numel()].view(shape).to(dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ with W dequantized in forward and backward, so that only its 4 bits are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.shape = shape
        return x @ dequantize(codes, scales, shape, x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        codes, scales = ctx.saved_tensors
        return grad @ dequantize(codes, scales, ctx.shape, grad.dtype), None, None, None


class NF4Linear(nn.Linear):
    """A frozen linear layer without bias whose weight is kept in 4 bits."""

    codes: Tensor
    scales: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        codes, scales = quantize(base.weight)
        del self.weight
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def shape(self) -> torch.Size:
        """(O, I)."""
        return torch.Size((self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) → (..., O), in x's dtype, or autocast's where that is on."""
        out: Tensor = _Product.apply(x.to(matmul_dtype(x)), self.codes, self.scales, self.shape)
        return out

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`."""
        return dequantize(self.codes, self.scales, self.shape, dtype)


def quantize_layers(model: nn.Module) -> None:
    """Keep every linear layer of the trunk in 4 bits, in place; stacked experts stay as they are.

    Norms, the embedding and the head stay too (QLoRA §3).
    """
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and ".layers." in f".{name}":
            model.set_submodule(name, NF4Linear(module))
