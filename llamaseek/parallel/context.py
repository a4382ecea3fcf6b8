"""Context parallel: each rank holds some of a row's tokens and gathers keys and values of all.

As Llama 3 does it (§3.3.2): a row is cut into 2 × C chunks, rank r takes chunks r and 2C - 1 - r,
and keys and values, small beside the queries' work, are gathered before attention. Each chunk
looks no further than its own end, so that all ranks do the same causal work, 1 / 2C more than half
of all pairs. Any document mask works. B batch, T time, C ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.models import CausalLM
from llamaseek.models.attention import (
    GroupedQueryAttention,
    LatentAttention,
    attend_in_row,
    document_mask,
)
from llamaseek.models.rope import Rotary
from llamaseek.parallel.collectives import Group, gather, gather_whole


class Slices:
    """Which columns of a row each rank of the context group holds."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.ranks = group.size() if group else 1
        self.rank = group.rank() if group else 0

    def columns(self, time: int, device: torch.device) -> Tensor:
        """This rank's columns of a row of `time`, in order: (T / C)."""
        return self._order(time, device)[self.rank]

    def own(self, x: Tensor) -> Tensor:
        """This rank's part of x (B, T, …)."""
        return x if self.group is None else x[:, self.columns(x.shape[1], x.device)]

    def whole(self, x: Tensor) -> Tensor:
        """All columns of x (B, T / C, …) in order; their gradients are parts."""
        if self.group is None:
            return x
        return gather(x, 1, self.group)[:, self._places(x)]

    def whole_alike(self, x: Tensor) -> Tensor:
        """The same if all ranks continue equally."""
        if self.group is None:
            return x
        return gather_whole(x, 1, self.group)[:, self._places(x)]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        """`attend_in_row` of this rank's chunks q (B, T / C, H, W) over whole k, v (B, T, K, W)."""
        if not causal:
            return attend_in_row(q, k, v, mask, False, scale)
        outs, size = [], q.shape[1] // 2
        for half, chunk in enumerate((self.rank, 2 * self.ranks - 1 - self.rank)):
            own, end = slice(half * size, (half + 1) * size), (chunk + 1) * size
            seen = mask[:, :, own, :end] if mask is not None else self.last(size, end, q.device)
            outs.append(attend_in_row(q[:, own], k[:, :end], v[:, :end], seen, False, scale))
        return torch.cat(outs, 1)

    def last(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """What each of the last `queries` of `keys` tokens sees. GPUs' kernels know it by name."""
        if device.type == "cuda":
            from torch.nn.attention.bias import causal_lower_right  # a second: it imports dynamo

            bias: Tensor = causal_lower_right(queries, keys)
            return bias
        return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)

    def _order(self, time: int, device: torch.device) -> Tensor:
        chunks = torch.arange(time, device=device).view(2 * self.ranks, -1)
        return torch.cat((chunks[: self.ranks], chunks.flip(0)[: self.ranks]), dim=1)

    def _places(self, x: Tensor) -> Tensor:
        return self._order(self.ranks * x.shape[1], x.device).flatten().argsort()


class SlicedRotary(Rotary):
    """Angles of this rank's columns, from the positions of whole rows."""

    slices: Slices

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (B, T) → cos, sin, each (B, T / C, 1, R / 2)."""
        return super().forward(self.slices.own(positions))


def split_rows(model: CausalLM, slices: Slices) -> None:
    """Let attention see whole rows while hidden states are slices. In place."""
    rotary = SlicedRotary(model.model.rotary.width, model.config)
    rotary.slices = slices
    model.model.rotary = rotary.to(model.model.rotary.inv_freq.device)
    causal = model.config.is_causal

    def mask(positions: Tensor) -> Tensor | None:
        own = slices.columns(positions.shape[1], positions.device)
        return document_mask(positions, causal, own)

    model.mask = mask  # type: ignore[method-assign]
    for module in model.modules():
        if isinstance(module, (GroupedQueryAttention, LatentAttention)):
            module.whole_row, module.attend = slices.whole, slices.attend
