"""Layers over matrices in GGUF's blocks, which stay in their file and are never widened whole.

N rows, K inputs, E experts, C choices of a token, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamaseek.kernels.blocks import in_halves

SUFFIX = "weight_blocks"
"""The buffer's name, uint8 (N, bytes of a row)."""


class BlockLinear(nn.Module):
    """A linear layer. `kind` is the type's number in ggml; `head`, where it is not 0, the width of
    heads whose rows alternate between their halves: the outputs are put in halves."""

    weight_blocks: Tensor

    def __init__(self, rows: int, inputs: int, row_bytes: int, kind: int, head: int = 0) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, rows
        self.kind, self.head = kind, head
        self.register_buffer(SUFFIX, torch.empty(rows, row_bytes, dtype=torch.uint8))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K) in `dtype`."""
        wide = torch.ops.llamaseek.widen_blocks(self.weight_blocks, self.kind)
        return in_halves(wide, self.head).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N)."""
        flat = x.reshape(-1, self.in_features)
        out = product(flat, [self.weight_blocks], [self.kind], [self.head])
        return out.view(*x.shape[:-1], self.out_features)


class BlockEmbedding(nn.Module):
    """A table of which only the rows that are asked for are widened."""

    weight_blocks: Tensor

    def __init__(self, rows: int, row_bytes: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer(SUFFIX, torch.empty(rows, row_bytes, dtype=torch.uint8))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (...) → (..., K) float32."""
        rows = self.weight_blocks[tokens.flatten()]
        wide: Tensor = torch.ops.llamaseek.widen_blocks(rows, self.kind)
        return wide.view(*tokens.shape, -1)


class BlockExperts(nn.Module):
    """Routed experts; those that no token chose are not read.

    The buffers `gate_blocks`, `up_blocks` and `down_blocks` are uint8 (E, N, bytes of a row).
    """

    gate_blocks: Tensor
    up_blocks: Tensor
    down_blocks: Tensor

    def __init__(self, shapes: dict[str, tuple[int, ...]], kinds: dict[str, int]) -> None:
        """`shapes` and `kinds` by "gate", "up" and "down"."""
        super().__init__()
        self.kinds = kinds
        for name, shape in shapes.items():
            self.register_buffer(f"{name}_blocks", torch.empty(shape, dtype=torch.uint8))

    def forward(
        self, x: Tensor, chosen: Tensor, gates: Tensor, load: Tensor | None = None
    ) -> Tensor:
        """x (M, D), chosen and gates (M, C) → (M, D), as `Experts.forward`."""
        out = torch.zeros_like(x)
        first = [self.kinds["gate"], self.kinds["up"]]
        for expert in chosen.unique().tolist():
            tokens, choices = (chosen == expert).nonzero(as_tuple=True)
            both = [self.gate_blocks[expert], self.up_blocks[expert]]
            inner = product(x[tokens], both, first, [0, 0], gate=True)
            made = product(inner, [self.down_blocks[expert]], [self.kinds["down"]], [0])
            out.index_add_(0, tokens, made * gates[tokens, choices, None].to(x.dtype))
        return out


def product(
    x: Tensor, weights: list[Tensor], kinds: list[int], heads: list[int], gate: bool = False
) -> Tensor:
    """x (M, K) times weights as `linear_blocks` takes them."""
    out: Tensor = torch.ops.llamaseek.linear_blocks(x, None, 0.0, weights, kinds, heads, None, gate)
    return out
