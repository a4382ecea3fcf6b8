"""Few tokens times a weight in fp8 blocks, in Triton: each number of the weight is read once.

A program makes some outputs of all tokens, a block of inputs after the other: the block's numbers
are exact in bf16, and its scale multiplies the sum of its products.

M tokens, K inputs, N outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamaseek.herd.formats import BLOCK

OUTPUTS = 32  # of a program; they share a block's scale
NARROWEST = 16  # rows that a matrix unit takes


@triton.jit
def product(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out (M, N) for OUTPUTS of the N."""
    row, place = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * OUTPUTS
    column = first + tl.arange(0, OUTPUTS)
    blocks = tl.cdiv(inputs, BLOCK)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for block in range(blocks):
        at = block * BLOCK + place
        real = at < inputs
        mine = (row < tokens)[:, None] & real[None, :]
        token = tl.load(x + row[:, None] * inputs + at[None, :], mask=mine, other=0.0)
        there = (column < outputs)[:, None] & real[None, :]
        read = tl.load(weight + column[:, None] * inputs + at[None, :], mask=there, other=0.0)
        scale = tl.load(scales + first // BLOCK * blocks + block)
        found = tl.dot(token, tl.trans(read.to(token.dtype)), input_precision="ieee")
        total += found * scale
    spot = out + row[:, None] * outputs + column[None, :]
    mask = (row < tokens)[:, None] & (column < outputs)[None, :]
    tl.store(spot, total.to(out.dtype.element_ty), mask=mask)


def multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (M, K) times weight (N, K) in fp8 blocks → (M, N); see `fp8.fp8_linear`."""
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    out = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    rows = max(triton.next_power_of_2(tokens), NARROWEST)
    product[(triton.cdiv(outputs, OUTPUTS),)](
        x.contiguous(), weight, scale, out, tokens, inputs, outputs, rows, OUTPUTS, BLOCK
    )
    return out
