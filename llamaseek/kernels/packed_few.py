"""Few tokens times a weight of 4 or 8 bits, in Triton: each word of the weight is read once.

A program makes some outputs of all tokens, a step of inputs after the other. The whole numbers are
exact in bf16, and a group's scale multiplies the sum of its products.

M tokens, K inputs, N outputs, W words of a row, G groups of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTPUTS = 32  # of a program
STEP_BYTES = 256  # of a token's inputs taken at once, or a group where that is smaller
NARROWEST = 16  # rows that a matrix unit takes


@triton.jit
def product(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    groups: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    BITS: tl.constexpr,
) -> None:
    """out (M, N) float32 for OUTPUTS of the N."""
    PER: tl.constexpr = 32 // BITS  # numbers of a word, lowest bits first
    row, place = tl.arange(0, ROWS), tl.arange(0, STEP)
    column = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    mine = column < outputs
    group = inputs // groups
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, inputs, STEP):
        at = start + place
        real = at < inputs
        asked = (row < tokens)[:, None] & real[None, :]
        token = tl.load(x + row[:, None] * inputs + at[None, :], mask=asked, other=0.0)
        word = words + column[:, None] * (inputs // PER) + at[None, :] // PER
        read = tl.load(word, mask=mine[:, None] & real[None, :], other=0)
        code = (read >> ((at % PER) * BITS)[None, :]) & ((1 << BITS) - 1)
        weight = (code - (1 << (BITS - 1))).to(tl.float32).to(token.dtype)
        scale = tl.load(scales + column * groups + start // group, mask=mine, other=0.0)
        found = tl.dot(token, tl.trans(weight), input_precision="ieee")
        total += found * scale.to(tl.float32)[None, :]
    spot = out + row[:, None] * outputs + column[None, :]
    tl.store(spot, total, mask=(row < tokens)[:, None] & mine[None, :])


def multiply(x: Tensor, words: Tensor, scales: Tensor, bits: int) -> Tensor:
    """x (M, K) times a weight of words (N, W) and scales (N, G) → (M, N) float32.

    Words are as `packed.pack` makes them; a group is a power of two, or the whole row.
    """
    (tokens, inputs), (outputs, groups) = x.shape, scales.shape
    out = torch.empty(tokens, outputs, dtype=torch.float32, device=x.device)
    rows = max(triton.next_power_of_2(tokens), NARROWEST)
    step = STEP_BYTES // x.dtype.itemsize
    step = step if groups == 1 else min(step, inputs // groups)
    grid = (triton.cdiv(outputs, OUTPUTS),)
    product[grid](
        x.contiguous(),
        words,
        scales,
        out,
        tokens,
        inputs,
        outputs,
        groups,
        rows,
        OUTPUTS,
        step,
        bits,
    )
    return out
