"""One forward of a model over the chunks of a step.

N tokens of the step, B chunks, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from llamaseek.engine.adapters import Adapters
from llamaseek.engine.fused import fuse
from llamaseek.engine.graphs import Graphs, bucket
from llamaseek.engine.layout import FEW, Ints, Layout, lay_out, sent
from llamaseek.engine.paged import PagedCache
from llamaseek.engine.scheduler import Chunk
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM


def home(model: CausalLM) -> tuple[torch.dtype, torch.device]:
    """What a model computes in, and where; the final norm is never quantized."""
    weight = model.model.norm.weight
    return weight.dtype, weight.device


class Runner:
    """A model, its cache, its adapters; `tables` holds answers' blocks of `size` tokens in rows.

    With `graphs`, `spare` is a block that no answer has.
    """

    def __init__(
        self,
        model: CausalLM,
        cache: PagedCache,
        tables: Ints,
        size: int,
        adapters: Adapters | None = None,
        graphs: Graphs | None = None,
        spare: int = 0,
    ) -> None:
        self.model, self.cache, self.tables, self.size = model, cache, tables, size
        self.adapters, self.graphs, self.spare = adapters, graphs, spare
        self.device = home(model)[1]
        self.fused = fuse(model) if cache.plain else None
        if self.fused is not None:
            builder().start()

    def begin(self, chunks: Sequence[Chunk], padding: int = 0) -> Layout:
        """Lay out the chunks and make the cache ready for a forward over them.

        `padding` rows more stand in the spare block.
        """
        starts = np.array([chunk.start for chunk in chunks] + [0] * padding, np.int64)
        counts = np.array([chunk.count for chunk in chunks] + [1] * padding, np.int64)
        rows = [chunk.answer.row for chunk in chunks]
        used = -(-int((starts + counts).max()) // self.size)
        blank = np.full((padding, used), self.spare, np.int64)
        tables = np.concatenate((self.tables[rows, :used], blank))
        layout = lay_out(tables, starts, counts, self.size, self.device, self.apart)
        layout = replace(layout, ends=layout.ends[: len(chunks)])
        self.cache.begin(layout)
        if self.adapters is not None:
            self.adapters.begin(chunks, self.device)
        return layout

    @property
    def apart(self) -> bool:
        """Whether tokens attend one by one where their sequence has few: by a GPU's kernels."""
        return self.device.type == "cuda"

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Layout]:
        """Compute the chunks' tokens and drafts: hidden (N, D), and where they stand."""
        row: list[int] = []
        for chunk in chunks:
            row += chunk.tokens
        few = all(chunk.count <= FEW for chunk in chunks)
        if self.graphs is not None and few and self.graphs.takes(len(row)):
            return self._replay(self.graphs, chunks, row)
        layout, tokens = self.begin(chunks), sent(np.array(row, np.int64), self.device)
        if self.fused is not None and self.fused.ready and layout.tables is not None:
            return self.fused(tokens, layout, self.cache), layout
        hidden: Tensor = self.model(tokens[None], layout.positions[None], self.cache)[0]
        return hidden, layout

    def _replay(
        self, graphs: Graphs, chunks: Sequence[Chunk], row: list[int]
    ) -> tuple[Tensor, Layout]:
        """`run` by a graph; what it gives stays until the next step."""
        padding = bucket(len(row)) - len(row)
        layout = self.begin(chunks, padding)
        tokens = sent(np.array(row + [0] * padding, np.int64), self.device)
        return graphs(tokens, layout)[: len(row)], layout

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (R, D) → logits (R, V)."""
        if self.fused is not None and self.fused.ready and len(hidden) <= FEW:
            return self.fused.head(hidden)
        return self.model.logits(hidden)
