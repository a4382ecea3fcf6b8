"""Layers whose weights are stored in 4 or 8 bits and are never widened whole.

What a folder holds for a linear layer `q_proj`: `q_proj.weight_packed` int32 (N, W),
`q_proj.weight_scale` bf16 (N, G) and `q_proj.weight_shape` (N, K), as compressed-tensors does.

N rows, K inputs, W words of a row, G groups of a row, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llamaseek.herd.formats import PACKED, PACKED_SCALE
from llamaseek.kernels import ops as _ops  # noqa: F401  defines the operators
from llamaseek.kernels.packed import dequantize_packed
from llamaseek.models.lazy import Lazy
from llamaseek.models.moe import Experts

WORD = 32  # bits


class PackedLinear(nn.Module):
    """A linear layer over packed weights; few tokens or many, each word is read once a block."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, packed: Lazy, scale: Lazy, inputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, packed.shape[0]
        self.bits = packed.shape[-1] * WORD // inputs
        self.register_buffer("weight_packed", torch.empty(packed.shape, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.empty(scale.shape, dtype=torch.bfloat16))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K) in `dtype`."""
        return dequantize_packed(self.weight_packed, self.weight_scale, self.bits, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N)."""
        out: Tensor = torch.ops.llamaseek.linear(
            x.reshape(-1, self.in_features),
            None,
            0.0,
            [self.weight_packed],
            [self.weight_scale],
            self.bits,
            None,
            False,
        )
        return out.view(*x.shape[:-1], self.out_features)


class PackedExperts(nn.Module):
    """Routed experts over packed weights; those that no token chose are not read."""

    gate_up_proj_packed: Tensor
    gate_up_proj_scale: Tensor
    down_proj_packed: Tensor
    down_proj_scale: Tensor

    def __init__(self, experts: int, hidden: int, stored: Mapping[str, Lazy], name: str) -> None:
        super().__init__()
        for ours, theirs, times in (("gate_up", "gate", (2,)), ("down", "down", ())):
            prefix = f"{name}.0.{theirs}_proj"
            for part, suffix, dtype in (
                ("packed", PACKED, torch.int32),
                ("scale", PACKED_SCALE, torch.bfloat16),
            ):
                rows, columns = stored[prefix + suffix].shape
                blank = torch.empty(experts, *times, rows, columns, dtype=dtype)
                self.register_buffer(f"{ours}_proj_{part}", blank)
        width = self.down_proj_packed.shape[1]
        self.bits = self.gate_up_proj_packed.shape[-1] * WORD // width
        self.down_bits = self.down_proj_packed.shape[-1] * WORD // hidden

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor, load: Tensor) -> Tensor:
        """As `Experts.forward`."""
        out: Tensor = torch.ops.llamaseek.experts(
            x,
            chosen,
            gates,
            self.gate_up_proj_packed.flatten(1, 2),
            self.gate_up_proj_scale.flatten(1, 2),
            self.down_proj_packed,
            self.down_proj_scale,
            self.bits,
            self.down_bits,
        )
        return out


def keep_packed(model: nn.Module, stored: Mapping[str, Lazy]) -> None:
    """Put packed layers in place of those whose weights are stored packed."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name + PACKED in stored:
            words, scale = stored[name + PACKED], stored[name + PACKED_SCALE]
            kept: nn.Module = PackedLinear(words, scale, module.in_features)
        elif isinstance(module, Experts) and f"{name}.0.gate_proj{PACKED}" in stored:
            experts, _, hidden = module.down_proj.shape
            kept = PackedExperts(experts, hidden, stored, name)
        else:
            continue
        model.set_submodule(name, kept)
