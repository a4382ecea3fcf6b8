"""Few tokens times a weight in fp8 blocks, in Triton: each number of the weight is read once.

A program makes some outputs of all tokens from a part of the inputs (see `few`), a block after the
other: the block's numbers are exact in bf16, and its scale multiplies the sum of its products.

M tokens, K inputs, N outputs, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamaseek.herd.formats import BLOCK
from llamaseek.kernels import few


@triton.jit
def product(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    each: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out (P, M, N) for OUTPUTS of the N, which share a block's scale, from `each` inputs."""
    row, place = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * OUTPUTS
    column = first + tl.arange(0, OUTPUTS)
    blocks, part = tl.cdiv(inputs, BLOCK), tl.program_id(1)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, inputs), BLOCK):
        at = start + place
        real = at < inputs
        mine = (row < tokens)[:, None] & real[None, :]
        token = tl.load(x + row[:, None] * inputs + at[None, :], mask=mine, other=0.0)
        there = (column < outputs)[:, None] & real[None, :]
        read = tl.load(weight + column[:, None] * inputs + at[None, :], mask=there, other=0.0)
        scale = tl.load(scales + first // BLOCK * blocks + start // BLOCK)
        found = tl.dot(token, tl.trans(read.to(token.dtype)), input_precision="ieee")
        total += found * scale
    spot = out + (part * tokens + row[:, None]) * outputs + column[None, :]
    mask = (row < tokens)[:, None] & (column < outputs)[None, :]
    tl.store(spot, total.to(out.dtype.element_ty), mask=mask)


def multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (M, K) times weight (N, K) in fp8 blocks → (M, N); see `fp8.fp8_linear`."""
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    parts, each = few.parts(inputs, outputs, BLOCK)
    dtype = x.dtype if parts == 1 else torch.float32
    out = torch.empty(parts, tokens, outputs, dtype=dtype, device=x.device)
    product[(triton.cdiv(outputs, few.OUTPUTS), parts)](
        x.contiguous(), weight, scale, out, tokens, inputs, outputs, each,
        few.rows(tokens), few.OUTPUTS, BLOCK, num_stages=few.STAGES,
    )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0).to(x.dtype)
