"""The parts both families are made of: RMSNorm and the gated feed-forward.

B batch, T time, D width, F feed-forward width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.kernels.fused import SwiGLU, in_one_pass, narrow_norm
from llamaseek.kernels.ops import narrower
from llamaseek.models.recompute import unneeded


def widen(x: Tensor) -> Tensor:
    """x in at least float32: what sums, exponents and angles are taken in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype matrix products run in here: autocast's where it is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.Module):
    """Scale to unit root mean square, then by a learned weight (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) → (..., D) in the narrower of x's and the weight's dtype; the mean square is
        taken in float32. A GPU's kernel, for 16 bits, takes the weight in x's dtype.
        """
        weight = self.weight
        if in_one_pass(x) and not torch.is_grad_enabled():
            return narrow_norm(x, weight, self.eps)
        if x.device.type == "cuda" and x.dtype.itemsize == 2:
            return F.rms_norm(x, weight.shape, weight.to(x.dtype), self.eps)
        wide = widen(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * weight).to(narrower(x, weight))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) × up, (..., F) each."""
    if in_one_pass(gate):
        out: Tensor = SwiGLU.apply(gate, up)
        return out
    return F.silu(gate) * up


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) → (..., D)."""
        inner = gated(self.gate_proj(x), self.up_proj(x))
        with unneeded():
            out: Tensor = self.down_proj(inner)
        return out


def dense_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight (N, K) in `dtype` that a linear layer multiplies by, whatever it keeps."""
    dense = getattr(layer, "dense", None)
    weight: Tensor = dense(dtype) if dense else layer.get_parameter("weight").to(dtype)
    return weight
