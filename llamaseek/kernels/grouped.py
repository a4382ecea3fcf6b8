"""Decoding attention over paged keys and values whose heads several query heads share, in Triton.

A program takes one token, one cached head with all query heads that share it, and one stretch of
the sequence (see `split`): each key and value is read once.

M tokens, B blocks of a sequence, S slots of the cache, H query heads, G cached heads, W head width,
C stretches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamaseek.kernels.split import blank, combined, more, places, span, stretches

NARROWEST = 16  # rows and columns that a matrix unit takes


@triton.jit
def read(
    kept: tl.tensor,
    scales: tl.tensor,
    slot: tl.tensor,
    seen: tl.tensor,
    column: tl.tensor,
    WIDTH: tl.constexpr,
    dtype: tl.constexpr,
    EIGHT: tl.constexpr,
) -> tl.tensor:
    """Rows (STEP, W) of a head at slots (STEP), in the queries' dtype; zeros where none is."""
    mask = seen[:, None] & (column < WIDTH)[None, :]
    rows = tl.load(kept + slot[:, None] * WIDTH + column[None, :], mask=mask, other=0)
    if EIGHT:
        scale = tl.load(scales + slot, mask=seen, other=0.0)
        return (rows.to(tl.float32) * scale[:, None]).to(dtype)
    return rows.to(dtype)


@triton.jit
def attend(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    means: tl.tensor,
    logs: tl.tensor,
    slots: tl.tensor,
    blocks: tl.tensor,
    cuts: tl.tensor,
    scale: tl.tensor,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    EIGHT: tl.constexpr,
) -> None:
    """means (M, H, C, W) and logs (M, H, C) of one token, cached head and stretch."""
    token, group, cut = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    head = token * HEADS + group * SHARED + row
    mine = row < SHARED
    asked = mine[:, None] & (column < WIDTH)[None, :]
    query = tl.load(q + head[:, None] * WIDTH + column[None, :], mask=asked, other=0.0)
    first = group.to(tl.int64) * slots
    start, last = span(tl.load(lengths + token), cuts, cut, STEP)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(start, last, STEP):
        slot, seen = places(tables + token * blocks, at, last, SIZE, STEP)
        slot += first
        key = read(keys, key_scales, slot, seen, column, WIDTH, query.dtype, EIGHT)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        weights, shrink, most, total = more(scores, most, total)
        value = read(values, value_scales, slot, seen, column, WIDTH, query.dtype, EIGHT)
        found = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        mean = mean * shrink[:, None] + found
    spot = head * cuts + cut
    if start < last:
        tl.store(logs + spot, most + tl.log(total), mask=mine)
        kept = means + spot[:, None] * WIDTH + column[None, :]
        tl.store(kept, mean / total[:, None], mask=asked)
    else:
        tl.store(logs + spot, most, mask=mine)


def attend_grouped(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    scales: Sequence[Tensor],
    tables: Tensor,
    lengths: Tensor,
    size: int,
    scale: float,
) -> Tensor:
    """q (M, H, W) over keys and values (G, S, W) → (M, H, W); see `paged.attend_paged`."""
    (tokens, heads, width), (groups, slots, _) = q.shape, keys.shape
    cuts = stretches(tokens * groups)
    means, logs = blank(q, cuts, width)
    rows, columns = (max(triton.next_power_of_2(n), NARROWEST) for n in (heads // groups, width))
    attend[(tokens, groups, cuts)](
        q.contiguous(),
        keys,
        values,
        scales[0] if scales else keys,
        scales[1] if scales else values,
        tables.contiguous(),
        lengths,
        means,
        logs,
        slots,
        tables.shape[1],
        cuts,
        scale,
        size,
        heads,
        heads // groups,
        width,
        rows,
        columns,
        steps(q.dtype, columns, bool(scales)),
        bool(scales),
    )
    return combined(means, logs, q.dtype)


def steps(dtype: torch.dtype, columns: int, eight: bool) -> int:
    """Tokens taken at once: two such steps of keys and values fit 64 KiB of shared memory, and what
    is widened from 8 bits fits the registers.
    """
    return max(min(32 if eight else 64, (1 << 14) // (columns * dtype.itemsize)), NARROWEST)
