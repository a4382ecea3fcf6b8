"""SwiGLU and rotary embeddings in Triton: each number is read once and written once.

M rows, F width, N tokens, H heads, R rotary width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamaseek.kernels.ops import narrower

COLUMNS = 1024  # of a row that a program computes
HEADS = 16  # of a token that a program turns


@triton.jit
def swiglu_kernel(
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    gate_row: tl.tensor,
    up_row: tl.tensor,
    width: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """out (M, F) = silu(gate) × up; rows of gate and up lie `gate_row` and `up_row` apart."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    g = tl.load(gate + row * gate_row + column, mask=inside).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside).to(tl.float32)
    tl.store(out + row * width + column, g * tl.sigmoid(g) * u, mask=inside)


@triton.jit
def swiglu_backward_kernel(
    gradient: tl.tensor,
    gate: tl.tensor,
    up: tl.tensor,
    by_gate: tl.tensor,
    by_up: tl.tensor,
    gradient_row: tl.tensor,
    gate_row: tl.tensor,
    up_row: tl.tensor,
    width: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """by_gate and by_up (M, F) from the gradient by silu(gate) × up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    d = tl.load(gradient + row * gradient_row + column, mask=inside).to(tl.float32)
    g = tl.load(gate + row * gate_row + column, mask=inside).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside).to(tl.float32)
    share = tl.sigmoid(g)
    at = row * width + column
    tl.store(by_gate + at, d * u * share * (1 + g * (1 - share)), mask=inside)
    tl.store(by_up + at, d * g * share, mask=inside)


@triton.jit
def turn(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    token_step: tl.tensor,
    head_step: tl.tensor,
    heads: tl.tensor,
    half: tl.tensor,
    program: tl.tensor,
    INTERLEAVED: tl.constexpr,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """out (N, H, R) of HEADS of a token: pairs of x turned by cos and sin (N, R / 2), or back."""
    token = tl.program_id(0).to(tl.int64)
    head = program * HEADS + tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (place < half)
    c = tl.load(cos + token * half + place, mask=place < half)
    s = tl.load(sin + token * half + place, mask=place < half)
    if BACK:
        s = -s
    if INTERLEAVED:
        first, second = 2 * place, 2 * place + 1
    else:
        first, second = place, place + half
    source = x + token * token_step + head * head_step
    a = tl.load(source + first, mask=inside).to(tl.float32)
    b = tl.load(source + second, mask=inside).to(tl.float32)
    target = out + (token * heads + head) * (2 * half)
    tl.store(target + first, a * c - b * s, mask=inside)
    tl.store(target + second, b * c + a * s, mask=inside)


@triton.jit
def store_kernel(
    first: tl.tensor,
    second: tl.tensor,
    slots: tl.tensor,
    first_kept: tl.tensor,
    second_kept: tl.tensor,
    first_step: tl.tensor,
    second_step: tl.tensor,
    first_head: tl.tensor,
    second_head: tl.tensor,
    first_width: tl.tensor,
    second_width: tl.tensor,
    room: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """A head of a token of two tensors (N, K, W) into (K, room, W) at the token's slot."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    slot = head * room + tl.load(slots + token)
    a = tl.load(first + token * first_step + head * first_head + column, mask=column < first_width)
    tl.store(first_kept + slot * first_width + column, a, mask=column < first_width)
    b = tl.load(
        second + token * second_step + head * second_head + column, mask=column < second_width
    )
    tl.store(second_kept + slot * second_width + column, b, mask=column < second_width)


@triton.jit
def rotate_kernel(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    token_step: tl.tensor,
    head_step: tl.tensor,
    heads: tl.tensor,
    half: tl.tensor,
    INTERLEAVED: tl.constexpr,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """`turn` of one tensor."""
    turn(
        x, cos, sin, out, token_step, head_step, heads, half, tl.program_id(1),
        INTERLEAVED, BACK, HEADS, HALF,
    )  # fmt: skip


@triton.jit
def rotate_both_kernel(
    q: tl.tensor,
    k: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    q_out: tl.tensor,
    k_out: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    q_heads: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    k_heads: tl.tensor,
    half: tl.tensor,
    programs: tl.tensor,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """`turn` of queries by the first `programs`, and of keys by the others."""
    program = tl.program_id(1)
    if program < programs:
        turn(
            q, cos, sin, q_out, q_token, q_head, q_heads, half, program,
            INTERLEAVED, False, HEADS, HALF,
        )  # fmt: skip
    else:
        turn(
            k, cos, sin, k_out, k_token, k_head, k_heads, half, program - programs,
            INTERLEAVED, False, HEADS, HALF,
        )  # fmt: skip


def rotate_both(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """q (N, H, R) and k (N, K, R) turned by the same cos and sin (N, R / 2)."""
    q, k = dense_rows(q), dense_rows(k)
    outs = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k)]
    sizes = [size for x in (q, k) for size in (x.stride(0), x.stride(1), x.shape[1])]
    half, narrow = q.shape[2] // 2, min(HEADS, triton.next_power_of_2(q.shape[1]))
    programs = triton.cdiv(q.shape[1], narrow)
    with torch.cuda.device_of(q):
        rotate_both_kernel[(len(q), programs + triton.cdiv(k.shape[1], narrow))](
            q, k, cos, sin, *outs, *sizes, half, programs,
            interleaved, narrow, triton.next_power_of_2(half),
        )  # fmt: skip
    return outs[0], outs[1]


def store(new: Sequence[Tensor], slots: Tensor, kept: Sequence[Tensor]) -> None:
    """Each of `new` (N, K, W), one or two, into its tensor of `kept` (K, slots, W)."""
    first, second = dense_rows(new[0]), dense_rows(new[-1])
    tokens, heads, width = first.shape
    wide = second.shape[2]
    steps = first.stride(0), second.stride(0), first.stride(1), second.stride(1)
    with torch.cuda.device_of(first):
        store_kernel[(tokens, heads)](
            first, second, slots, kept[0], kept[-1], *steps, width, wide, kept[0].shape[1],
            triton.next_power_of_2(max(width, wide)),
        )  # fmt: skip


@triton.jit
def norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    row_step: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """A row of out (M, F): x to unit root mean square, times weight (F)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    wide = tl.load(x + row * row_step + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    w = tl.load(weight + column, mask=inside).to(tl.float32)
    tl.store(out + row * width + column, wide * scale * w, mask=inside)


def narrow_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (M, F) to unit root mean square, times weight (F), in the narrower of the two dtypes."""
    x = dense_rows(x)
    out = torch.empty(x.shape, dtype=narrower(x, weight), device=x.device)
    rows, width = x.shape
    with torch.cuda.device_of(x):
        norm_kernel[(rows,)](
            x, weight, out, x.stride(0), width, eps, triton.next_power_of_2(width), num_warps=8
        )
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) × up, (M, F) each."""
    gate, up = dense_rows(gate), dense_rows(up)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    rows, width = gate.shape
    with torch.cuda.device_of(gate):
        swiglu_kernel[(rows, triton.cdiv(width, COLUMNS))](
            gate, up, out, gate.stride(0), up.stride(0), width, COLUMNS
        )
    return out


def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by gate and up, (M, F) each."""
    gradient, gate, up = dense_rows(gradient), dense_rows(gate), dense_rows(up)
    by_gate, by_up = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in "gu")
    rows, width = gate.shape
    steps = gradient.stride(0), gate.stride(0), up.stride(0)
    with torch.cuda.device_of(gate):
        swiglu_backward_kernel[(rows, triton.cdiv(width, COLUMNS))](
            gradient, gate, up, by_gate, by_up, *steps, width, COLUMNS
        )
    return by_gate, by_up


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, back: bool) -> Tensor:
    """x (N, H, R) turned by cos and sin (N, R / 2) in float32, or turned back."""
    x = dense_rows(x)
    tokens, heads, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shape = x.stride(0), x.stride(1), heads, width // 2
    narrow = min(HEADS, triton.next_power_of_2(heads))
    with torch.cuda.device_of(x):
        rotate_kernel[(tokens, triton.cdiv(heads, narrow))](
            x, cos, sin, out, *shape, interleaved, back, narrow, triton.next_power_of_2(width // 2)
        )
    return out


def dense_rows(x: Tensor) -> Tensor:
    """x itself where the numbers of its last dimension lie beside each other, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
