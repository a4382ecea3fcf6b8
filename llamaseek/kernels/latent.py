"""Decoding attention over paged latents (DeepSeek-V3), in Triton.

A program takes one token, a block of heads, and one stretch of the sequence (see `split`). A latent
is read once for all heads of the block: the numbers that are scored are the values too.

M tokens, B blocks of a sequence, S slots of the cache, H query heads, C latent rank,
R rotary width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamaseek.kernels.split import blank, combined, more, places, span, stretches

NARROWEST = 16  # rows and columns that a matrix unit takes
STEP_BYTES = 1 << 15  # of latents taken at once
DATA_CENTRE = (9, 10)  # compute capabilities with 227 KiB of shared memory a multiprocessor


@triton.jit
def read(
    kept: tl.tensor,
    scales: tl.tensor,
    PART: tl.constexpr,
    slot: tl.tensor,
    seen: tl.tensor,
    column: tl.tensor,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    dtype: tl.constexpr,
    EIGHT: tl.constexpr,
) -> tl.tensor:
    """Numbers (STEP, COUNT) from FIRST on of latents at slots (STEP), in the queries' dtype."""
    mask = seen[:, None] & (column < COUNT)[None, :]
    rows = tl.load(kept + slot[:, None] * WIDTH + FIRST + column[None, :], mask=mask, other=0)
    if EIGHT:
        scale = tl.load(scales + slot * 2 + PART, mask=seen, other=0.0)
        return (rows.to(tl.float32) * scale[:, None]).to(dtype)
    return rows.to(dtype)


@triton.jit
def attend(
    q: tl.tensor,
    kept: tl.tensor,
    scales: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    means: tl.tensor,
    logs: tl.tensor,
    blocks: tl.tensor,
    cuts: tl.tensor,
    scale: tl.tensor,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURNED: tl.constexpr,
    STEP: tl.constexpr,
    EIGHT: tl.constexpr,
) -> None:
    """means (M, H, cuts, C) and logs (M, H, cuts) of one token, block of heads and stretch."""
    # Blocks of heads come first, so that those of one stretch run together and share a cache.
    part, token, cut = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    row, column, turned = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, TURNED)
    head, mine = token * HEADS + part * ROWS + row, part * ROWS + row < HEADS
    asked = mine[:, None] & (column < RANK)[None, :]
    begin = q + head[:, None] * (RANK + ROPE)
    plain = tl.load(begin + column[None, :], mask=asked, other=0.0)
    there = mine[:, None] & (turned < ROPE)[None, :]
    rotary = tl.load(begin + RANK + turned[None, :], mask=there, other=0.0)
    start, last = span(tl.load(lengths + token), cuts, cut, STEP)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(start, last, STEP):
        slot, seen = places(tables + token * blocks, at, last, SIZE, STEP)
        latent = read(kept, scales, 0, slot, seen, column, 0, RANK, RANK + ROPE, plain.dtype, EIGHT)
        key = read(kept, scales, 1, slot, seen, turned, RANK, ROPE, RANK + ROPE, plain.dtype, EIGHT)
        scores = tl.dot(plain, tl.trans(latent), input_precision="ieee")
        scores += tl.dot(rotary, tl.trans(key), input_precision="ieee")
        scores = tl.where(seen[None, :], scores * scale, float("-inf"))
        weights, shrink, most, total = more(scores, most, total)
        found = tl.dot(weights.to(latent.dtype), latent, input_precision="ieee")
        mean = mean * shrink[:, None] + found
    spot = head * cuts + cut
    if start < last:
        tl.store(logs + spot, most + tl.log(total), mask=mine)
        tl.store(means + spot[:, None] * RANK + column[None, :], mean / total[:, None], mask=asked)
    else:
        tl.store(logs + spot, most, mask=mine)


def attend_latent(
    q: Tensor,
    kept: Tensor,
    scales: Sequence[Tensor],
    tables: Tensor,
    lengths: Tensor,
    size: int,
    rank: int,
    scale: float,
) -> Tensor:
    """q (M, H, C + R) over latents (1, S, C + R) → (M, H, C); see `paged.attend_paged`."""
    tokens, heads, width = q.shape
    rows = head_block(q, heads)
    parts = triton.cdiv(heads, rows)
    cuts = stretches(tokens * parts)
    means, logs = blank(q, cuts, rank)
    wide, narrow = (max(triton.next_power_of_2(n), NARROWEST) for n in (rank, width - rank))
    step = max(min(64, STEP_BYTES // (wide * q.dtype.itemsize)), NARROWEST)
    attend[(parts, tokens, cuts)](
        q.contiguous(),
        kept,
        scales[0] if scales else kept,
        tables.contiguous(),
        lengths,
        means,
        logs,
        tables.shape[1],
        cuts,
        scale,
        size,
        heads,
        rank,
        width - rank,
        rows,
        wide,
        narrow,
        step,
        bool(scales),
        num_warps=8 if rows > NARROWEST else 4,
    )
    return combined(means, logs, q.dtype)


def head_block(q: Tensor, heads: int) -> int:
    """Heads that a program takes: more where their sums and queries find room."""
    roomy = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] in DATA_CENTRE
    most = 64 if roomy and q.dtype.itemsize == 2 else NARROWEST
    return min(max(triton.next_power_of_2(heads), NARROWEST), most)
