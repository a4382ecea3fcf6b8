"""The forward pass of a model over the chunks of a step.

N tokens of the step, B chunks, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llamaseek.engine.adapters import Adapters
from llamaseek.engine.forward.fused import fuse
from llamaseek.engine.forward.graphs import MOST, Graphs, bucket
from llamaseek.engine.forward.paged import PagedCache
from llamaseek.engine.forward.step_layout import FEW, Ints, StepLayout, lay_out, sent
from llamaseek.engine.scheduler import Chunk
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM
from llamaseek.runtime.device import keep_freed_memory


def home(model: CausalLM) -> tuple[torch.dtype, torch.device]:
    """What a model computes in, and where; the final norm is never quantized."""
    weight = model.model.norm.weight
    return weight.dtype, weight.device


@dataclass(frozen=True)
class Inputs:
    """What a forward runs on: tokens (N) of B chunks, whose sequences' blocks are `tables`' rows.

    tables (B, blocks), starts and counts (B).
    """

    tables: Ints
    starts: Ints
    counts: Ints
    tokens: Ints

    def stand_as(self, other: Inputs) -> bool:
        """Whether the other's tokens stand at the same places."""
        return (
            np.array_equal(self.starts, other.starts)
            and np.array_equal(self.counts, other.counts)
            and np.array_equal(self.tables, other.tables)
        )

    def padded(self, rows: int, block: int) -> Inputs:
        """With chunks of one token more, which stand at the start of `block`."""
        blocks = np.full((rows, self.tables.shape[1]), block, np.int64)
        none, one = np.zeros(rows, np.int64), np.ones(rows, np.int64)
        return Inputs(
            np.concatenate((self.tables, blocks)),
            np.concatenate((self.starts, none)),
            np.concatenate((self.counts, one)),
            np.concatenate((self.tokens, none)),
        )


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
        if self.device.type == "cpu":
            keep_freed_memory()  # a prompt's activations fault their pages in once
        self.last: tuple[Inputs, StepLayout] | None = None
        self.fused = fuse(model) if cache.plain else None
        if self.fused is not None:
            builder().start()

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, StepLayout]:
        """Compute the chunks' tokens and drafts: hidden (N, D), and where they stand."""
        row: list[int] = []
        for chunk in chunks:
            row += chunk.tokens
        inputs = self._inputs(chunks, row)
        few = bool((inputs.counts <= FEW).all())
        if self.graphs is not None and few and self.graphs.takes(len(row)):
            return self._replay(self.graphs, inputs)
        return self.forward(inputs)

    def ahead(
        self, chunks: Sequence[Chunk], hidden: Tensor, following: list[int]
    ) -> tuple[Tensor, StepLayout]:
        """The multi-token module on hidden (N, D) and the tokens (N) that follow: (N, D)."""
        return self.forward(self._inputs(chunks, following), hidden)

    def _inputs(self, chunks: Sequence[Chunk], tokens: list[int]) -> Inputs:
        if self.adapters is not None:
            self.adapters.begin(chunks, self.device)
        starts = np.array([chunk.start for chunk in chunks], np.int64)
        counts = np.array([chunk.count for chunk in chunks], np.int64)
        used = -(-int((starts + counts).max()) // self.size)
        tables = self.tables[[chunk.answer.row for chunk in chunks], :used]
        return Inputs(tables, starts, counts, np.array(tokens, np.int64))

    def _fuses(self, tokens: Ints) -> bool:
        """Whether the fused operators take the tokens of a step."""
        return self.fused is not None and self.fused.ready and len(tokens) <= FEW

    def _begin(self, inputs: Inputs) -> tuple[Tensor, StepLayout]:
        """The tokens on the device, laid out, and the cache ready for a forward over them."""
        if self.last is None or not inputs.stand_as(self.last[0]):
            where = inputs.tables, inputs.starts, inputs.counts
            self.last = inputs, lay_out(*where, self.size, self.device, self.cache.apart)
        layout = self.last[1]
        self.cache.begin(layout)
        return sent(inputs.tokens, self.device), layout

    def forward(self, inputs: Inputs, before: Tensor | None = None) -> tuple[Tensor, StepLayout]:
        """The model, or from its hidden states `before` (N, D) its multi-token module."""
        tokens, layout = self._begin(inputs)
        where = layout.positions[None]
        if self.fused is not None and self._fuses(inputs.tokens):
            hidden = self.fused(tokens, layout, self.cache, before)
        elif before is not None:
            hidden = self.model.mtp(0, before[None], tokens[None], where, self.cache)[0]
        else:
            hidden = self.model(tokens[None], where, self.cache)[0]
        return hidden, layout

    def _replay(self, graphs: Graphs, inputs: Inputs) -> tuple[Tensor, StepLayout]:
        """`forward` by a graph; what it gives stays until the next step."""
        count, chunks = len(inputs.tokens), len(inputs.starts)
        tokens, layout = self._begin(inputs.padded(bucket(count) - count, self.spare))
        layout = replace(layout, ends=layout.ends[:chunks])
        return graphs(tokens, layout)[:count], layout

    def capture(self, most: int) -> Iterator[tuple[int, int]]:
        """Make the graphs of steps of up to `most` tokens, the largest first, whose memory the
        others share: how many of how many there are. Nothing without graphs.
        """
        if self.graphs is None:
            return
        sizes = sorted({bucket(tokens) for tokens in range(1, min(most, MOST) + 1)}, reverse=True)
        none = np.empty(0, np.int64)
        for done, rows in enumerate(sizes, 1):
            if not self.graphs.takes(rows):
                return
            inputs = Inputs(none.reshape(0, 1), none, none, none).padded(rows, self.spare)
            self.graphs(*self._begin(inputs))
            yield done, len(sizes)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (R, D) → logits (R, V); of a reward model its scores (R, 1)."""
        if self.model.config.is_reward_model:
            return self.model.score(hidden)[..., None]
        if self.fused is not None and self.fused.ready and len(hidden) <= FEW:
            return self.fused.logits(hidden)
        return self.model.logits(hidden)
