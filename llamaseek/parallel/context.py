"""Context parallel: each rank holds some of a row's tokens and gathers keys and values of all.

As Llama 3 does it (§3.3.2): a row is cut into 2 × C chunks, rank r takes chunks r and 2C - 1 - r,
and keys and values, small beside the queries' work, are gathered before attention. Each chunk
looks no further than its own end, so that all ranks do the same causal work, 1 / 2C more than half
of all pairs. Any document mask works. B batch, T time, C ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llamaseek.models import CausalLM
from llamaseek.models.attention import (
    GroupedQueryAttention,
    LatentAttention,
    Mask,
    attend_in_row,
    document_mask,
)
from llamaseek.models.documents import Documents, documents_of
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
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, causal: bool, scale: float
    ) -> Tensor:
        """`attend_in_row` of this rank's chunks q (B, T / C, H, W) over whole k, v (B, T, K, W)."""
        if not causal:
            return attend_in_row(q, k, v, mask, False, scale)
        outs, size = [], q.shape[1] // 2
        for half, chunk in enumerate(self.chunks):
            own, end = slice(half * size, (half + 1) * size), (chunk + 1) * size
            seen: Mask | None
            if isinstance(mask, Tensor):
                seen = mask[:, :, own, :end]
            elif mask is None:
                seen = self.last(size, end, q.device)
            else:
                assert not isinstance(mask, Documents)
                seen = mask[half]
            by_document = isinstance(mask, tuple)  # says where documents end, and not what is later
            part = q[:, own], k[:, :end], v[:, :end]
            outs.append(attend_in_row(*part, seen, causal=by_document, scale=scale))
        return torch.cat(outs, 1)

    @property
    def chunks(self) -> tuple[int, int]:
        """The numbers of this rank's two of the 2 × C chunks of a row."""
        return self.rank, 2 * self.ranks - 1 - self.rank

    def documents(self, positions: Tensor, causal: bool) -> Mask:
        """Where documents end on this rank, for GPUs: positions (B, T) are those of whole rows."""
        time = positions.shape[1]
        size = time // (2 * self.ranks)
        own = [np.arange(chunk * size, (chunk + 1) * size) for chunk in self.chunks]
        if not causal:
            return documents_of(positions, np.concatenate(own))
        first, second = (documents_of(positions, part, int(part[-1]) + 1) for part in own)
        return first, second

    def last(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """What each of the last `queries` of `keys` tokens sees."""
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

    def mask(positions: Tensor) -> Mask | None:
        if positions.device.type != "cpu":
            return slices.documents(positions, causal)
        own = slices.columns(positions.shape[1], positions.device)
        return document_mask(positions, causal, own)

    model.mask = mask  # type: ignore[method-assign]
    for module in model.modules():
        if isinstance(module, (GroupedQueryAttention, LatentAttention)):
            module.whole_row, module.attend = slices.whole, slices.attend
