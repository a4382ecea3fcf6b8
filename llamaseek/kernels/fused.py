"""What a GPU computes between products, each in one pass over memory: SwiGLU and rotary embeddings,
forward and backward, and what decoding has besides.

A compiler fuses the plain formulas by itself. The operators' fallbacks are written in PyTorch.
M rows, F width, N tokens, H heads, R rotary width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llamaseek.kernels.ops import TRITON, library, narrower

SCHEMAS = (
    "swiglu(Tensor gate, Tensor up) -> Tensor",
    "swiglu_backward(Tensor gradient, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    "rotate(Tensor x, Tensor cos, Tensor sin, bool interleaved, bool back) -> Tensor",
    "narrow_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    "rotate_both(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved) -> (Tensor, Tensor)",
    # new, each (N, K, W), into kept, each (K, slots, W), at slots (N)
    "store(Tensor[] new, Tensor slots, Tensor(a!)[] kept) -> ()",
)
# logits (N, E) → experts and gates (N, K), and tokens an expert (E). `models.moe.Router` chooses
# where there is no Triton.
CHOOSE = (
    "choose_experts(Tensor logits, Tensor bias, int groups, int kept, int choices, "
    "bool normalize, float factor) -> (Tensor, Tensor, Tensor)"
)


def in_one_pass(x: Tensor) -> bool:
    """Whether a kernel, which computes in float32, does on `x`: on a GPU, without a compiler."""
    on_gpu = TRITON and x.device.type == "cuda" and x.dtype != torch.float64
    return on_gpu and not torch.compiler.is_compiling()


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) × up, (M, F) each, rounded once."""
    if gate.is_cuda:
        from llamaseek.kernels import fused_triton

        return fused_triton.swiglu(gate, up)
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def _swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by gate and up, (M, F) each."""
    if gate.is_cuda:
        from llamaseek.kernels import fused_triton

        return fused_triton.swiglu_backward(gradient, gate, up)
    g, u, d = gate.float(), up.float(), gradient.float()
    share = g.sigmoid()
    by_gate = d * u * share * (1 + g * (1 - share))
    return by_gate.to(gate.dtype), (d * g * share).to(up.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, back: bool) -> Tensor:
    """x (N, H, R) turned by cos and sin (N, R / 2) in float32, or turned back."""
    if x.is_cuda:
        from llamaseek.kernels import fused_triton

        return fused_triton.rotate(x, cos, sin, interleaved, back)
    c, s = cos[:, None], (-sin if back else sin)[:, None]
    if interleaved:
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    else:
        first, second = x.float().chunk(2, dim=-1)
    turned = first * c - second * s, second * c + first * s
    out = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return out.to(x.dtype)


def _rotate_both(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """q (N, H, R) and k (N, K, R) turned by the same cos and sin (N, R / 2)."""
    if q.is_cuda:
        from llamaseek.kernels import fused_triton

        return fused_triton.rotate_both(q, k, cos, sin, interleaved)
    turned = (_rotate(x, cos, sin, interleaved, False) for x in (q, k))
    return next(turned), next(turned)


def _store(new: Sequence[Tensor], slots: Tensor, kept: Sequence[Tensor]) -> None:
    """Each of `new` (N, K, W) goes to `slots` (N) of its tensor of `kept` (K, slots, W)."""
    if slots.is_cuda:
        from llamaseek.kernels import fused_triton

        fused_triton.store(new, slots, kept)
        return
    for place, fresh in zip(kept, new, strict=True):
        place.index_copy_(1, slots, fresh.transpose(0, 1).to(place.dtype))


def _narrow_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (M, F) to unit root mean square, times weight (F), in the narrower of the two dtypes."""
    if x.is_cuda:
        from llamaseek.kernels import fused_triton

        return fused_triton.narrow_norm(x, weight, eps)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return scaled.to(narrower(x, weight))


def _new(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


FALLBACKS = (_swiglu, _swiglu_backward, _rotate, _narrow_norm, _rotate_both, _store)
SHAPES: tuple[Callable[..., Any], ...] = (
    lambda gate, up: _new(gate),
    lambda gradient, gate, up: (_new(gate), _new(up)),
    lambda x, *rest: _new(x),
    lambda x, weight, eps: x.new_empty(x.shape, dtype=narrower(x, weight)),
    lambda q, k, *rest: (_new(q), _new(k)),
    lambda *rest: None,
)
for schema, fallback, shape in zip(SCHEMAS, FALLBACKS, SHAPES, strict=True):
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llamaseek::{name}", shape, lib=library)
ops = torch.ops.llamaseek


def _choose_experts(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See `routing.choose_experts`."""
    from llamaseek.kernels.routing import choose_experts

    return choose_experts(logits, *rest)


def _choice_shapes(
    logits: Tensor, bias: Tensor, groups: int, kept: int, choices: int, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, experts = logits.shape
    chosen = logits.new_empty(tokens, choices, dtype=torch.int64)
    gates = logits.new_empty(tokens, choices, dtype=torch.float32)
    return chosen, gates, logits.new_empty(experts, dtype=torch.int64)


library.define(CHOOSE)
library.impl("choose_experts", _choose_experts, "CUDA")
torch.library.register_fake("llamaseek::choose_experts", _choice_shapes, lib=library)


def narrow_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., F) to unit root mean square, times weight (F); without gradients."""
    out: Tensor = ops.narrow_norm(x.flatten(0, -2), weight, eps)
    return out.view(x.shape)


def _each(turn: Tensor, x: Tensor) -> Tensor:
    """Cosines or sines (B or 1, T, 1, R / 2) of every token of x (B, T, H, R): (B × T, R / 2)."""
    return turn.expand(*x.shape[:2], 1, turn.shape[-1]).flatten(0, 2).contiguous()


def rotate_both(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """q (B, T, H, R) and k (B, T, K, R) turned alike; without gradients."""
    turns = (_each(part, q) for part in (cos, sin))
    turned = ops.rotate_both(q.flatten(0, 1), k.flatten(0, 1), *turns, interleaved)
    return turned[0].view(q.shape), turned[1].view(k.shape)


class SwiGLU(torch.autograd.Function):
    """silu(gate) × up; keeps the two alone for its backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """gate, up (..., F) → (..., F)."""
        ctx.save_for_backward(gate, up)
        out: Tensor = ops.swiglu(gate.flatten(0, -2), up.flatten(0, -2))
        return out.view(gate.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Gradients by gate and up."""
        gate, up = ctx.saved_tensors
        rows = (x.flatten(0, -2) for x in (gradient, gate, up))
        by_gate, by_up = ops.swiglu_backward(*rows)
        return by_gate.view(gate.shape), by_up.view(up.shape)


class Rotate(torch.autograd.Function):
    """Rotary embeddings; keeps no activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        """x (B, T, H, R), cos and sin (B, T, 1, R / 2) → (B, T, H, R)."""
        turns = tuple(_each(part, x) for part in (cos, sin))
        ctx.save_for_backward(*turns)
        ctx.interleaved = interleaved
        out: Tensor = ops.rotate(x.flatten(0, 1), *turns, interleaved, False)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """The gradient turned back."""
        turned = ops.rotate(gradient.flatten(0, 1), *ctx.saved_tensors, ctx.interleaved, True)
        return turned.view(gradient.shape), None, None, None
