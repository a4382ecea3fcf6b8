"""Attention of tokens that each see a sequence of the paged cache, as decoding has them.

The operator `attend_paged` serves both families. Here it is in PyTorch; on CUDA the Triton kernels
of `grouped` and `latent` take its place, on a CPU the one in C++. No device waits for another in
it, so that CUDA graphs can hold it.

M tokens, B blocks of a sequence, S slots of the cache, H query heads, G cached heads, W cached
width, V value width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llamaseek.kernels.build import builder
from llamaseek.kernels.ops import TRITON, library

library.define(
    "attend_paged(Tensor q, Tensor[] kept, Tensor[] scales, Tensor tables, Tensor lengths, "
    "int size, int value_width, float scale) -> Tensor"
)


def attend_paged(
    q: Tensor,
    kept: Sequence[Tensor],
    scales: Sequence[Tensor],
    tables: Tensor,
    lengths: Tensor,
    size: int,
    value_width: int,
    scale: float,
) -> Tensor:
    """q (M, H, W) over keys (G, S, W) and values (G, S, V) → (M, H, V).

    Latents are kept as one tensor (1, S, W) whose first V numbers are the values too. Query m sees
    the first lengths[m] tokens of the blocks tables[m] (B), `size` slots each. What is kept in 8
    bits has scales (G, S, 1), latents (1, S, 2): of the values, and of the rest.
    """
    places = torch.arange(size, device=q.device)
    slots = (tables[..., None] * size + places).flatten(1)  # (M, L)
    seen = torch.arange(slots.shape[1], device=q.device) < lengths[:, None]
    factors: Sequence[Tensor | None] = scales or [None] * len(kept)
    read = [
        widened(numbers[:, slots], None if factor is None else factor[:, slots], value_width)
        for numbers, factor in zip(kept, factors, strict=True)
    ]
    keys, values = (part.to(q.dtype).float() for part in (read[0], read[-1][..., :value_width]))
    grouped = q.float().unflatten(1, (len(keys), -1)).transpose(0, 1)  # (G, M, H / G, W)
    scores = grouped @ keys.transpose(-1, -2) * scale
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return (weights @ values).transpose(0, 1).flatten(1, 2).to(q.dtype)


def widened(numbers: Tensor, factor: Tensor | None, value_width: int) -> Tensor:
    """What is kept (..., W), times its scales (..., 1 or 2) where it has any."""
    if factor is None:
        return numbers
    if factor.shape[-1] == 1:
        return numbers.float() * factor
    rest = numbers.shape[-1] - value_width
    parts = zip(numbers.float().split((value_width, rest), -1), factor.split(1, -1), strict=True)
    return torch.cat([part * one for part, one in parts], -1)


def on_cuda(
    q: Tensor,
    kept: Sequence[Tensor],
    scales: Sequence[Tensor],
    tables: Tensor,
    lengths: Tensor,
    size: int,
    value_width: int,
    scale: float,
) -> Tensor:
    """The same by Triton; see `attend_paged`."""
    from llamaseek.kernels.grouped import attend_grouped
    from llamaseek.kernels.latent import attend_latent

    with torch.cuda.device_of(q):
        if len(kept) == 1:
            return attend_latent(q, kept[0], scales, tables, lengths, size, value_width, scale)
        return attend_grouped(q, kept[0], kept[1], scales, tables, lengths, size, scale)


def on_cpu(
    q: Tensor,
    kept: Sequence[Tensor],
    scales: Sequence[Tensor],
    tables: Tensor,
    lengths: Tensor,
    size: int,
    value_width: int,
    scale: float,
) -> Tensor:
    """The same by the C++ kernel, once it is built, where numbers are kept as they are."""
    if scales or not builder().ready or q.dtype not in (torch.float32, torch.bfloat16):
        return attend_paged(q, kept, scales, tables, lengths, size, value_width, scale)
    values = kept[-1][..., :value_width]
    found: Tensor = torch.ops.llamaseek.attend(q, kept[0], values, tables, lengths, size, scale)
    return found


def _shape(q: Tensor, kept: Sequence[Tensor], *rest: object) -> Tensor:
    width = rest[4]
    assert isinstance(width, int)
    return q.new_empty(*q.shape[:2], width)


library.impl("attend_paged", attend_paged, "CompositeExplicitAutograd")
library.impl("attend_paged", on_cpu, "CPU")
if TRITON:
    library.impl("attend_paged", on_cuda, "CUDA")
torch.library.register_fake("llamaseek::attend_paged", _shape, lib=library)
