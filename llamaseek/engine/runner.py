"""One forward of a model over the chunks of a step.

N tokens of the step, B chunks, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llamaseek.engine.adapters import Adapters
from llamaseek.engine.fused import fuse
from llamaseek.engine.layout import FEW, Ints, Layout, lay_out
from llamaseek.engine.paged import PagedCache
from llamaseek.engine.scheduler import Chunk
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM


def home(model: CausalLM) -> tuple[torch.dtype, torch.device]:
    """What a model computes in, and where; the final norm is never quantized."""
    weight = model.model.norm.weight
    return weight.dtype, weight.device


class Runner:
    """A model, its cache, its adapters; `tables` holds answers' blocks of `size` tokens in rows."""

    def __init__(
        self,
        model: CausalLM,
        cache: PagedCache,
        tables: Ints,
        size: int,
        adapters: Adapters | None = None,
    ) -> None:
        self.model, self.cache, self.tables, self.size = model, cache, tables, size
        self.adapters = adapters
        self.device = home(model)[1]
        self.fused = fuse(model) if cache.plain else None
        if self.fused is not None:
            builder().start()

    def begin(self, chunks: Sequence[Chunk]) -> Layout:
        """Lay out the chunks and make the cache ready for a forward over them."""
        starts = np.array([chunk.start for chunk in chunks], np.int64)
        counts = np.array([chunk.count for chunk in chunks], np.int64)
        rows = [chunk.answer.row for chunk in chunks]
        used = -(-int((starts + counts).max()) // self.size)
        layout = lay_out(self.tables[rows, :used], starts, counts, self.size, self.device)
        self.cache.begin(layout)
        if self.adapters is not None:
            self.adapters.begin(chunks, self.device)
        return layout

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Layout]:
        """Compute the chunks' tokens and drafts: hidden (N, D), and where they stand."""
        layout = self.begin(chunks)
        row: list[int] = []
        for chunk in chunks:
            row += chunk.tokens
        tokens = torch.tensor(row, device=self.device)
        if self.fused is not None and self.fused.ready and layout.tables is not None:
            return self.fused(tokens, layout, self.cache), layout
        hidden: Tensor = self.model(tokens[None], layout.positions[None], self.cache)[0]
        return hidden, layout

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (R, D) → logits (R, V)."""
        if self.fused is not None and self.fused.ready and len(hidden) <= FEW:
            return self.fused.head(hidden)
        return self.model.logits(hidden)
