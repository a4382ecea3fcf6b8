"""DeepSeek-V3's fp8 weights: e4m3 numbers, one float32 scale for every block of 128 × 128.

The value is number × `weight_scale_inv` (DeepSeek-V3 report §3.3.2; inference/kernel.py
`weight_dequant` of the release). N rows, K columns, E experts, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.errors import UserError
from llamaseek.herd.formats import BLOCK, scale_shape
from llamaseek.kernels.fp8 import dequantize_fp8
from llamaseek.models.lazy import Lazy
from llamaseek.models.moe import Experts, run_experts

FP8_MAX = 448.0  # the largest e4m3 number
SMALLEST = 1e-12  # of what a block's largest number counts as, so that zeros have a scale


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) → e4m3 numbers (N, K) and float32 scales, each block's largest number at 448."""
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = blocks.abs().amax((1, 3)).clamp(min=SMALLEST) / FP8_MAX
    numbers = (blocks / scale[:, None, :, None]).flatten(2, 3).flatten(0, 1)
    return numbers[:rows, :columns].to(torch.float8_e4m3fn).contiguous(), scale


def check_scale(name: str, scale: Tensor) -> None:
    """`UserError` for a scale that is not a finite number."""
    if not scale.isfinite().all():
        raise UserError(f"{name}: holds a scale that is not a finite number")


class Fp8Linear(nn.Module):
    """A linear layer that keeps fp8 blocks."""

    weight: Tensor
    weight_scale_inv: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale_inv", torch.empty(scale_shape((outputs, inputs))))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K) in `dtype`."""
        return dequantize_fp8(self.weight, self.weight_scale_inv, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N)."""
        if x.requires_grad:  # the operator has no backward
            return F.linear(x, self.dense(x.dtype))
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.llamaseek.fp8_linear(flat, self.weight, self.weight_scale_inv)
        return out.view(*x.shape[:-1], -1)


class Fp8Experts(nn.Module):
    """Routed experts in fp8 blocks; only the experts that were chosen are widened."""

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        fp8 = torch.float8_e4m3fn
        self.register_buffer("gate_up_proj", torch.empty(experts, 2 * hidden, width, dtype=fp8))
        self.register_buffer("down_proj", torch.empty(experts, width, hidden, dtype=fp8))
        rows, columns = scale_shape((hidden, width))
        # Gate and up keep scales of their own: a block never spans both.
        self.register_buffer("gate_up_proj_scale_inv", torch.empty(experts, 2 * rows, columns))
        self.register_buffer("down_proj_scale_inv", torch.empty(experts, columns, rows))

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor, load: Tensor) -> Tensor:
        """As `Experts.forward`."""
        used = load.nonzero().flatten()
        gate_up, down = self._gate_up(used, x.dtype), self._down(used, x.dtype)
        return run_experts(x, chosen, gates, load[used], gate_up, down)

    def _gate_up(self, used: Tensor, dtype: torch.dtype) -> Tensor:
        weight = self.get_buffer("gate_up_proj")[used].unflatten(1, (2, -1))
        scale = self.get_buffer("gate_up_proj_scale_inv")[used].unflatten(1, (2, -1))
        return dequantize_fp8(weight, scale, dtype).flatten(1, 2)

    def _down(self, used: Tensor, dtype: torch.dtype) -> Tensor:
        scale = self.get_buffer("down_proj_scale_inv")[used]
        return dequantize_fp8(self.get_buffer("down_proj")[used], scale, dtype)


def keep_fp8(model: nn.Module, stored: dict[str, Lazy]) -> None:
    """Put fp8 layers in place of those whose weights are stored in fp8 blocks."""
    fp8 = {name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and f"{name}.weight" in fp8:
            kept: nn.Module = Fp8Linear(module.in_features, module.out_features)
        elif isinstance(module, Experts) and f"{name}.0.gate_proj.weight" in fp8:
            experts, width, hidden = module.down_proj.shape
            kept = Fp8Experts(experts, width, hidden)
        else:
            continue
        model.set_submodule(name, kept)
