"""SwiGLU and rotary embeddings in Triton: each number is read once and written once.

M rows, F width, N tokens, H heads, R rotary width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    """out (N, H, R): pairs of x turned by cos and sin (N, R / 2), or turned back."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
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
