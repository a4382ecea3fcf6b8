"""Drafts of DeepSeek-V3's multi-token module for one sequence in one call of the kernels.

The module is small, so that what runs in Python between its drafts would take longer than they do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llamaseek.engine.forward.fused import Fused, embedding_table
from llamaseek.engine.forward.halves import Latents, Mixture
from llamaseek.engine.forward.paged import PagedCache
from llamaseek.engine.forward.step_layout import Inputs
from llamaseek.parallel.layers import ParallelLMHead


class Chain:
    """A model's first multi-token module and its head, over the kept latents of `cache`.

    ValueError where a part of it is of another kind, or where ranks add up in between.
    """

    def __init__(self, fused: Fused, cache: PagedCache) -> None:
        self.fused = fused
        module = fused.ahead[0] if fused.ahead else None
        attention, mixture = module.steps if module is not None else (None, None)
        if module is None or not isinstance(attention, Latents) or not isinstance(mixture, Mixture):
            raise ValueError("there is no module of latents and experts")
        if (
            attention.out.split
            or isinstance(fused.model.lm_head, ParallelLMHead)
            or not mixture.whole
        ):
            raise ValueError("these layers are called one by one")
        self.module, self.attention, self.mixture = module, attention, mixture
        self.embed = embedding_table(fused.model)
        self.kept, self.size = cache.stores[attention.layer.layer].kept[0], cache.stores[0].size
        self.made: Any = None  # when the kernels are there

    def _make(self) -> Any:
        layer, parts = self.module.layer, (self.embed, self.module.joined, self.attention.out)
        return torch.classes.llamaseek.MultiToken(
            [each.shared() for each in (*parts, self.fused.head)],
            [norm.weight for norm in (layer.enorm, layer.hnorm, layer.shared_head.norm)],
            layer.enorm.eps,
            self.attention.kernel(),
            self.mixture.kernel(),
        )

    def __call__(self, hidden: Tensor, inputs: Inputs, count: int) -> list[int]:
        """hidden (N, D) of a chunk, N up to `FEW`, and, as tokens of `inputs`, what follows each of
        its places → the `count` likeliest tokens behind them, for which there are blocks.
        """
        if self.made is None:
            self.made = self._make()
        (start,), (row,) = inputs.starts, inputs.rows
        angles = self.fused.angles(inputs.longest + count)
        blocks = torch.from_numpy(inputs.blocks)
        parts = self.attention.parts(self.kept.dtype)
        drafts: list[int] = self.made.run(
            hidden, inputs.tokens, start, row, blocks, self.size, *parts, *angles, self.kept, count
        )
        return drafts
