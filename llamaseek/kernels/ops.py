"""The operators: schemas, shapes, and what they compute in PyTorch.

A "weight" is bf16 or float32 (`bits` 16 or 32), or packed words with scales (`bits` 4 or 8, see
`packed`). Fallbacks multiply by the widened weight; the C++ kernels round activations when
the weight is packed: to 15 bits and a scale a token for weights of 8 bits, to 8 bits and a scale
for every 128 of a token for weights of 4.

M tokens, K inputs, N outputs, H query heads, G cached heads, W cached width, V value width,
E experts, C choices of a token, S slots of the cache, B blocks of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional as F

from llamaseek.kernels.packed import dequantize_packed
from llamaseek.kernels.wide import wide_product

SCHEMAS = (
    "linear(Tensor x, Tensor? norm, float eps, Tensor[] weights, Tensor[] scales, int bits, "
    "Tensor? residual, bool gate) -> Tensor",
    "linear_heads(Tensor x, Tensor weight) -> Tensor",
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    # x (M, K) and a router's weight (E, K) and bias (E) → experts and gates (M, C) as
    # `llamaseek.models.moe.Router` chooses them, which is what runs without the C++ kernels.
    "route(Tensor x, Tensor weight, Tensor bias, int groups, int kept, int choices, "
    "bool normalize, float scale) -> (Tensor, Tensor)",
    "experts(Tensor x, Tensor chosen, Tensor gates, Tensor gate_up, Tensor? gate_up_scale, "
    "Tensor down, Tensor? down_scale, int bits, int down_bits) -> Tensor",
    "attend(Tensor q, Tensor keys, Tensor values, Tensor tables, Tensor lengths, int size, "
    "float scale) -> Tensor",
    "rotate_store(Tensor qkv, Tensor cos, Tensor sin, Tensor slots, Tensor(a!) keys, "
    "Tensor(b!) values) -> Tensor",
    "rotate_store_latent(Tensor q, Tensor absorbed, Tensor latent, Tensor norm, float eps, "
    "Tensor cos, Tensor sin, Tensor slots, Tensor(a!) kept) -> Tensor",
)
ROWS = 8192  # of a packed weight widened at once
TRITON = find_spec("triton") is not None

library = Library("llamaseek", "DEF")
for schema in SCHEMAS:
    library.define(schema)


def few_on_gpu(tokens: int, dtype: torch.dtype) -> bool:
    """Whether Triton multiplies them by weights in fewer bits; many gain from a widened copy.

    Products in float32 do without matrix units, and run out of registers sooner.
    """
    return TRITON and tokens <= (64 if dtype.itemsize == 2 else 16)


def narrower(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the one that takes fewer bytes a number; x's where both take as many."""
    return x.dtype if x.dtype.itemsize <= weight.dtype.itemsize else weight.dtype


def normalize(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x (..., K) float32 to unit mean square, times weight; x itself without one."""
    if weight is None:
        return x
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def _times(
    x: Tensor, weight: Tensor, scale: Tensor | None, bits: int, dtype: torch.dtype
) -> Tensor:
    """x (M, K) times one weight (N, K), packed ones widened to `dtype`, as float32."""
    if scale is None:
        inner = x.to(weight.dtype)
        return (
            wide_product(inner, weight) if dtype.itemsize > 2 else F.linear(inner, weight).float()
        )
    if x.is_cuda and few_on_gpu(len(x), dtype):
        from llamaseek.kernels.packed_few import multiply

        with torch.cuda.device_of(x):
            return multiply(x.to(dtype), weight, scale, bits)
    parts = [
        F.linear(x.to(dtype), dequantize_packed(words, some, bits, dtype)).float()
        for words, some in zip(weight.split(ROWS), scale.split(ROWS), strict=True)
    ]
    return torch.cat(parts, -1)


def linear(
    x: Tensor,
    norm: Tensor | None,
    eps: float,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    bits: int,
    residual: Tensor | None,
    gate: bool,
) -> Tensor:
    """x (M, K), normalized by `norm` (K) if given, times weights (N_i, K) → (M, ΣN_i).

    With `gate` there are two weights, and the result is silu(first) × second. `residual` is added.
    """
    ready = x if norm is None else normalize(x.float(), norm, eps)
    kept: Sequence[Tensor | None] = scales or [None] * len(weights)
    parts = [_times(ready, w, s, bits, x.dtype) for w, s in zip(weights, kept, strict=True)]
    if gate:
        out = F.silu(parts[0]) * parts[1]
    else:
        out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return (out if residual is None else out + residual).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (M, K) to unit mean square, times weight (K) → (M, K)."""
    return normalize(x.float(), weight, eps).to(x.dtype)


def linear_heads(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, H, K) times each head's own weight (H, N, K) → (M, H, N)."""
    return torch.einsum("mhk,hnk->mhn", x, weight)


def experts(
    x: Tensor,
    chosen: Tensor,
    gates: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor | None,
    down: Tensor,
    down_scale: Tensor | None,
    bits: int,
    down_bits: int,
) -> Tensor:
    """x (M, K) through each token's experts, chosen and gates (M, C), summed by gate → (M, K).

    gate_up (E, 2N, K) and down (E, K, N) may be packed.
    """
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in chosen.unique().tolist():
        tokens, choices = (chosen == expert).nonzero(as_tuple=True)
        both = _times(x[tokens].float(), gate_up[expert], _of(gate_up_scale, expert), bits, x.dtype)
        first, second = both.chunk(2, dim=-1)
        made = _times(
            F.silu(first) * second, down[expert], _of(down_scale, expert), down_bits, x.dtype
        )
        out.index_add_(0, tokens, made * gates[tokens, choices, None].float())
    return out.to(x.dtype)


def _of(scales: Tensor | None, expert: int) -> Tensor | None:
    return None if scales is None else scales[expert]


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    size: int,
    scale: float,
) -> Tensor:
    """q (M, H, W) over keys (G, S, W) and values (G, S, V) → (M, H, V).

    Query m sees the first lengths[m] tokens of the blocks tables[m] (B), `size` slots each.
    """
    shared = q.shape[1] // keys.shape[0]
    outs = []
    for query, table, length in zip(q, tables, lengths.tolist(), strict=True):
        steps = torch.arange(length, device=q.device)
        slots = table[steps // size] * size + steps % size
        k = keys[:, slots].float()
        scores = query.float().unflatten(0, (-1, shared)) @ k.transpose(1, 2) * scale
        weights = scores.softmax(-1)
        outs.append((weights @ values[:, slots].float()).flatten(0, 1))
    return torch.stack(outs).to(q.dtype)


def rotate_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """qkv (M, (H + 2G) W): turns queries and keys, keeps keys and values at slots (M) of keys and
    values (G, S, W), gives the queries (M, H, W). cos and sin (M, W / 2), pairs (i, i + W / 2)."""
    width, groups = keys.shape[2], keys.shape[0]
    row = qkv.unflatten(-1, (-1, width))
    turned, v = row[:, :-groups].float(), row[:, -groups:]
    first, second = turned.chunk(2, dim=-1)
    c, s = cos.float()[:, None], sin.float()[:, None]
    turned = torch.cat((first * c - second * s, second * c + first * s), -1).to(qkv.dtype)
    keys.index_copy_(1, slots, turned[:, -groups:].transpose(0, 1).to(keys.dtype))
    values.index_copy_(1, slots, v.transpose(0, 1).to(values.dtype))
    return turned[:, :-groups].contiguous()


def rotate_store_latent(
    q: Tensor,
    absorbed: Tensor,
    latent: Tensor,
    norm: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    kept: Tensor,
) -> Tensor:
    """What latent attention keeps of new tokens, and its queries (M, H, W) over what is kept.

    q (M, H, P + R) gives its last R numbers, turned, to stand behind absorbed (M, H, V); latent
    (M, V + R) is normalized and turned likewise, and kept at slots (M) of kept (1, S, V + R).
    cos and sin (M, R / 2), pairs (2i, 2i + 1).
    """
    rank = absorbed.shape[-1]
    rope = kept.shape[-1] - rank
    c, s = cos.float(), sin.float()
    plain = normalize(latent[:, :rank].float(), norm, eps)
    new = torch.cat((plain, _interleaved(latent[:, rank:].float(), c, s)), -1)
    kept.index_copy_(1, slots, new[None].to(kept.dtype))
    turned = _interleaved(q[..., -rope:].float(), c[:, None], s[:, None])
    return torch.cat((absorbed, turned.to(q.dtype)), -1)


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def _linear_shape(
    x: Tensor,
    norm: Tensor | None,
    eps: float,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    bits: int,
    residual: Tensor | None,
    gate: bool,
) -> Tensor:
    rows = sum(weight.shape[0] for weight in weights)
    return x.new_empty(x.shape[0], rows // 2 if gate else rows)


def _attend_shape(q: Tensor, keys: Tensor, values: Tensor, *rest: object) -> Tensor:
    return q.new_empty(*q.shape[:2], values.shape[2])


def _queries_shape(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, *rest: object
) -> Tensor:
    width = keys.shape[2]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // width - 2 * keys.shape[0], width)


FALLBACKS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "linear": (linear, _linear_shape),
    "linear_heads": (linear_heads, lambda x, w: x.new_empty(*x.shape[:2], w.shape[1])),
    "rms_norm": (rms_norm, lambda x, *rest: torch.empty_like(x)),
    "experts": (experts, lambda x, *rest: torch.empty_like(x)),
    "attend": (attend, _attend_shape),
    "rotate_store": (rotate_store, _queries_shape),
    "rotate_store_latent": (
        rotate_store_latent,
        lambda q, absorbed, *rest: q.new_empty(*q.shape[:2], rest[-1].shape[2]),
    ),
}
for name, (fallback, shape) in FALLBACKS.items():
    library.impl(name, fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llamaseek::{name}", shape, lib=library)
