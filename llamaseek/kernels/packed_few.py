"""Few tokens times a weight of 4 or 8 bits, in Triton: each word of the weight is read once.

A program makes some outputs of all tokens from a part of the inputs (see `few`), step by step. The
whole numbers are exact in bf16, and a scale multiplies the sum of a step's products; groups smaller
than a step are multiplied by their scales before, as for many tokens.

M tokens, K inputs, N outputs, W words of a row, G groups of a row, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamaseek.kernels import few

STEP_BYTES = 256  # of a token's inputs taken at once


@triton.jit
def product(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    row_words: tl.tensor,
    groups: tl.tensor,
    group: tl.tensor,
    each: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """out (P, M, N) float32 for OUTPUTS of the N, from `each` of the inputs; GROUP is 0 where a
    group, or the whole row, is no smaller than a step.
    """
    PER: tl.constexpr = 32 // BITS  # numbers of a word, lowest bits first
    row, place = tl.arange(0, ROWS), tl.arange(0, STEP)
    column = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    mine, part = column < outputs, tl.program_id(1)
    last = tl.minimum((part + 1) * each, inputs)
    shift = tl.arange(0, PER) * BITS
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(part * each, last, STEP):
        at = start + place
        asked = (row < tokens)[:, None] & (at < last)[None, :]
        token = tl.load(x + row[:, None] * inputs + at[None, :], mask=asked, other=0.0)
        word = start // PER + tl.arange(0, STEP // PER)
        there = mine[:, None] & (word < row_words)[None, :]
        read = tl.load(words + column[:, None] * row_words + word[None, :], mask=there, other=0)
        code = (read[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1)
        weight = (tl.reshape(code, (OUTPUTS, STEP)) - (1 << (BITS - 1))).to(tl.float32)
        if GROUP > 0:
            one = start // GROUP + tl.arange(0, STEP // GROUP)
            known = mine[:, None] & (one < groups)[None, :]
            found = tl.load(scales + column[:, None] * groups + one[None, :], mask=known, other=0.0)
            pieces = tl.reshape(weight, (OUTPUTS, STEP // GROUP, GROUP))
            weight = tl.reshape(pieces * found.to(tl.float32)[:, :, None], (OUTPUTS, STEP))
        made = tl.dot(token, tl.trans(weight.to(token.dtype)), input_precision="ieee")
        if GROUP == 0:
            scale = tl.load(scales + column * groups + start // group, mask=mine, other=0.0)
            made *= scale.to(tl.float32)[None, :]
        total += made
    spot = out + (part * tokens + row[:, None]) * outputs + column[None, :]
    tl.store(spot, total, mask=(row < tokens)[:, None] & mine[None, :])


def multiply(x: Tensor, words: Tensor, scales: Tensor, bits: int) -> Tensor:
    """x (M, K) times a weight of words (N, W) and scales (N, G) → (M, N) float32.

    Words are as `packed.pack` makes them; a group is a power of two, or the whole row.
    """
    (tokens, inputs), (outputs, groups) = x.shape, scales.shape
    group = inputs // groups
    step = STEP_BYTES // x.dtype.itemsize
    small = group if groups > 1 and group < step else 0
    parts, each = few.parts(inputs, outputs, step)
    out = torch.empty(parts, tokens, outputs, dtype=torch.float32, device=x.device)
    product[(triton.cdiv(outputs, few.OUTPUTS), parts)](
        x.contiguous(), words, scales, out, tokens, inputs, outputs, words.shape[1], groups, group,
        each, few.rows(tokens), few.OUTPUTS, step, bits, small,
        num_stages=few.STAGES,
    )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0)
