"""What the paged kernels share: a sequence is cut into stretches, each attended by a program of its
own, and their outcomes are put together (flash-decoding, Dao et al. 2023).

A program holds, for each of its heads, the largest score, the sum of exponents above it, and the
values weighted by them. It leaves the weighted mean and the logarithm of the sum, from which the
whole's mean follows.

M tokens, H query heads, C stretches, V value width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 256  # at the least, so that a GPU's 100 to 150 multiprocessors have two each
FEWEST, MOST = 4, 64  # stretches of a sequence
COLUMNS = 128  # of the values that one program of `combine` adds up


def stretches(others: int) -> int:
    """Into how many stretches every sequence is cut where there are `others` programs a stretch.

    How long a stretch is depends on the sequence and is found on the GPU.
    """
    return min(max(triton.next_power_of_2(-(-PROGRAMS // others)), FEWEST), MOST)


def blank(q: Tensor, cuts: int, width: int) -> tuple[Tensor, Tensor]:
    """Room for the outcomes: means (M, H, C, V) and logarithms (M, H, C), float32."""
    means = q.new_empty(*q.shape[:2], cuts, width, dtype=torch.float32)
    return means, q.new_empty(*q.shape[:2], cuts, dtype=torch.float32)


@triton.jit
def span(length: tl.tensor, cuts: tl.tensor, cut: tl.tensor, STEP: tl.constexpr) -> tl.tuple:
    """The tokens, from and to, of stretch `cut`: whole steps, alike for all but the last."""
    each = tl.cdiv(tl.cdiv(length, STEP), cuts) * STEP
    return cut * each, tl.minimum(length, (cut + 1) * each)


@triton.jit
def places(
    tables: tl.tensor, start: tl.tensor, last: tl.tensor, size: tl.tensor, STEP: tl.constexpr
) -> tl.tuple:
    """Slots (STEP) of the tokens from `start` on, and which of them are before `last`."""
    at = start + tl.arange(0, STEP)
    seen = at < last
    block = tl.load(tables + at // size, mask=seen, other=0)
    return block * size + at % size, seen


@triton.jit
def more(scores: tl.tensor, most: tl.tensor, total: tl.tensor) -> tl.tuple:
    """Continue softmax: scores (heads, STEP): weights, what to shrink the past by, most, total."""
    now = tl.maximum(most, tl.max(scores, 1))
    shrink = tl.exp(most - now)
    weights = tl.exp(scores - now[:, None])
    return weights, shrink, now, total * shrink + tl.sum(weights, 1)


@triton.jit
def combine(
    means: tl.tensor,
    logs: tl.tensor,
    out: tl.tensor,
    cuts: tl.tensor,
    width: tl.tensor,
    CUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One program a token's head, and part of the columns: stretches weighed by exp(log)."""
    row = tl.program_id(0).to(tl.int64)
    cut = tl.arange(0, CUTS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    log = tl.load(logs + row * cuts + cut, mask=cut < cuts, other=float("-inf"))
    share = tl.exp(log - tl.max(log, 0))
    # Empty stretches left nothing in `means`, not even zeros.
    there = (log > float("-inf"))[:, None] & (column < width)[None, :]
    at = (row * cuts + cut[:, None]) * width + column[None, :]
    mean = tl.load(means + at, mask=there, other=0.0)
    whole = tl.sum(mean * share[:, None], 0) / tl.sum(share, 0)
    tl.store(out + row * width + column, whole.to(out.dtype.element_ty), mask=column < width)


def combined(means: Tensor, logs: Tensor, dtype: torch.dtype) -> Tensor:
    """means (M, H, C, V) and logs (M, H, C) → (M, H, V)."""
    tokens, heads, cuts, width = means.shape
    out = torch.empty(tokens, heads, width, dtype=dtype, device=means.device)
    grid = (tokens * heads, triton.cdiv(width, COLUMNS))
    combine[grid](means, logs, out, cuts, width, triton.next_power_of_2(cuts), COLUMNS)
    return out
