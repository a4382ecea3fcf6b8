"""A plain cache to compare with: one slot a position, rows of any lengths.

B batch, T new tokens, S cached slots, H query heads, K cached heads, W cached width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llamaseek.models.cache import Cache, LayerShape


class ContiguousCache(Cache):
    """Each row owns `length` slots; the token at position p of a row lives in its slot p.

    Rows of different lengths are padded on the right: what a pad wrote is overwritten by the
    token that comes to stand there, before anything may look at it.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        batch: int,
        length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shapes = list(shapes)
        self.length = length
        self.tensors = [
            tuple(
                torch.zeros(batch, length, shape.heads, width, dtype=dtype, device=device)
                for width in shape.widths
            )
            for shape in shapes
        ]

    def attend(
        self, layer: int, q: Tensor, new: tuple[Tensor, ...], positions: Tensor, scale: float
    ) -> Tensor:
        """See `Cache.attend`; raises IndexError where a position has no slot."""
        rows = torch.arange(q.shape[0], device=q.device)[:, None]
        used = int(positions.max()) + 1
        stored = self.tensors[layer]
        for kept, fresh in zip(stored, new, strict=True):
            kept[rows, positions] = fresh.to(kept.dtype)
        keys = stored[0][:, :used].to(q.dtype)
        values = stored[-1][:, :used, :, : self.shapes[layer].value_width].to(q.dtype)
        slots = torch.arange(used, device=q.device)
        visible = slots <= positions[..., None]  # (B, T, S)
        return attend_shared_heads(q, keys, values, visible, scale)


def attend_shared_heads(
    q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float
) -> Tensor:
    """q (B, T, H, W), keys (B, S, K, W), values (B, S, K, V), visible (B, T, S) → (B, T, H, V).

    Query heads of one group are laid beside each other as more queries of one key head, so that
    keys are read once and never repeated.
    """
    batch, time, heads, _ = q.shape
    groups = keys.shape[2]
    grouped = q.unflatten(2, (groups, heads // groups)).permute(0, 2, 1, 3, 4).flatten(2, 3)
    scores = grouped @ keys.permute(0, 2, 3, 1) * scale  # (B, K, T * H/K, S)
    hidden = ~visible[:, None].repeat_interleave(heads // groups, dim=2)
    weights = F.softmax(scores.float().masked_fill(hidden, -torch.inf), dim=-1).to(q.dtype)
    out = weights @ values.transpose(1, 2)
    return out.unflatten(2, (time, heads // groups)).permute(0, 2, 1, 3, 4).flatten(2, 3)
