"""Products with matrices in GGUF's blocks: the operators `linear_blocks` and `widen_blocks`.

A matrix (N, K) is uint8 (N, bytes of a row), as it lies in a file; its kind is the type's number in
ggml. Here the operators are in PyTorch, by the `gguf` package; the C++ kernels in their place never
widen a matrix whole, and round activations, a scale for every 32 of a token: to 15 bits where
tokens are few, and to 16 where they are more than 16.

M tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llamaseek.kernels.ops import library, normalize

KINDS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
"""What the kernels multiply as it is: names and numbers of ggml."""

library.define(
    "linear_blocks(Tensor x, Tensor? norm, float eps, Tensor[] weights, int[] kinds, int[] heads, "
    "Tensor? residual, bool gate) -> Tensor"
)
library.define("widen_blocks(Tensor blocks, int kind) -> Tensor")


def widen_blocks(blocks: Tensor, kind: int) -> Tensor:
    """blocks uint8 (N, bytes of a row) → (N, K) float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType(kind)))


def in_halves(rows: Tensor, head: int) -> Tensor:
    """Rows (N, …) that alternate between a head's halves, by halves; a head has `head` rows."""
    return rows.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2) if head else rows


def linear_blocks(
    x: Tensor,
    norm: Tensor | None,
    eps: float,
    weights: Sequence[Tensor],
    kinds: Sequence[int],
    heads: Sequence[int],
    residual: Tensor | None,
    gate: bool,
) -> Tensor:
    """x (M, K), normalized by `norm` (K) if given, times weights (N_i, K) → (M, ΣN_i).

    With `gate` there are two weights, and the result is silu(first) × second. `residual` is added.
    Outputs of a weight with a head's width in `heads` are put in halves; see `in_halves`.
    """
    ready = normalize(x.float(), norm, eps)
    parts = [
        F.linear(ready, in_halves(widen_blocks(weight, kind), head))
        for weight, kind, head in zip(weights, kinds, heads, strict=True)
    ]
    out = F.silu(parts[0]) * parts[1] if gate else torch.cat(parts, -1)
    return (out if residual is None else out + residual).to(x.dtype)


library.impl("linear_blocks", linear_blocks, "CompositeExplicitAutograd")
library.impl("widen_blocks", widen_blocks, "CompositeExplicitAutograd")
