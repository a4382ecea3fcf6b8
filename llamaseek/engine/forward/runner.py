"""The forward pass of a model over the chunks of a step.

N tokens of the step, B chunks, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llamaseek.engine.adapters import Adapters
from llamaseek.engine.forward.chain import Chain
from llamaseek.engine.forward.fused import fuse
from llamaseek.engine.forward.graphs import MOST, Graphs, bucket
from llamaseek.engine.forward.paged import PagedCache
from llamaseek.engine.forward.step_layout import (
    FEW,
    Inputs,
    Ints,
    StepLayout,
    StepResult,
    lay_out,
    sent,
    some_rows,
)
from llamaseek.engine.scheduler import Chunk
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM
from llamaseek.runtime.device import keep_freed_memory


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
        if self.device.type == "cpu":
            keep_freed_memory()  # a prompt's activations fault their pages in once
        self.last: tuple[tuple[list[int], list[int]], Ints, StepLayout] | None = None
        self.fused = fuse(model) if cache.plain else None
        self.chain: Chain | None = None
        if self.fused is not None:
            builder().start()
            with suppress(ValueError):
                self.chain = Chain(self.fused, cache)

    def run(self, chunks: Sequence[Chunk], rows: list[int]) -> StepResult:
        """Compute the chunks' tokens and drafts, and the logits of some rows, in ascending order.

        Hidden states (N, D) of all, logits (R, V).
        """
        tokens: list[int] = []
        for chunk in chunks:
            tokens += chunk.tokens
        return self.step(self._inputs(chunks, tokens), rows)

    def follow(self, chunks: Sequence[Chunk], tokens: Tensor) -> StepResult:
        """`run` of chunks of one token each (B), which the device has and the host does not."""
        unknown = [0] * len(chunks)
        return self.step(self._inputs(chunks, unknown), list(range(len(chunks))), tokens)

    def step(self, inputs: Inputs, rows: list[int], there: Tensor | None = None) -> StepResult:
        """`run` on what the chunks stand for, or on tokens that are `there` (N) already."""
        fused = self.fused
        if there is None and fused is not None and fused.takes(inputs):
            assert fused.whole is not None
            return fused.whole(inputs, self.cache, fused.angles(inputs.longest), rows)
        graphs = self.graphs
        if graphs is not None and max(inputs.counts) <= FEW and graphs.takes(len(inputs.tokens)):
            hidden = self._replay(graphs, inputs, there)
        else:
            hidden = self.forward(inputs, there=there)
        logits = self.logits(some_rows(hidden, rows)) if rows else hidden.new_empty(0)
        return StepResult(hidden, logits)

    def ahead(self, chunks: Sequence[Chunk], hidden: Tensor, following: list[int]) -> Tensor:
        """The multi-token module on hidden (N, D) and the tokens (N) that follow: (N, D)."""
        return self.forward(self._inputs(chunks, following), hidden)

    def draft(
        self, chunks: Sequence[Chunk], hidden: Tensor, following: list[int], count: int
    ) -> list[int] | None:
        """`ahead`, and the `count` likeliest tokens behind it; None where no kernel does it."""
        chain = self.chain
        if chain is None or not chain.fused.ready or len(chunks) > 1 or len(following) > FEW:
            return None
        return chain(hidden, self._inputs(chunks, following), count)

    def _inputs(self, chunks: Sequence[Chunk], tokens: list[int]) -> Inputs:
        if self.adapters is not None and self.adapters.names:
            self.adapters.begin(chunks, self.device)
        rows = [chunk.answer.row for chunk in chunks]
        starts, counts = [chunk.start for chunk in chunks], [chunk.count for chunk in chunks]
        return Inputs(self.tables, rows, starts, counts, tokens)

    def _begin(self, inputs: Inputs, there: Tensor | None = None) -> tuple[Tensor, StepLayout]:
        """The tokens on the device, laid out, and the cache ready for a forward over them."""
        tables, places = inputs.tables(self.size), (inputs.starts, inputs.counts)
        if self.last is None or self.last[0] != places or not np.array_equal(self.last[1], tables):
            starts, counts = (np.array(part, np.int64) for part in places)
            kinds = self.cache.apart, self.cache.joins
            layout = lay_out(tables, starts, counts, self.size, self.device, *kinds)
            self.last = places, tables, layout
        layout = self.last[2]
        self.cache.begin(layout)
        tokens = sent(np.array(inputs.tokens, np.int64), self.device) if there is None else there
        return tokens, layout

    def forward(
        self, inputs: Inputs, before: Tensor | None = None, there: Tensor | None = None
    ) -> Tensor:
        """The model, or from its hidden states `before` (N, D) its multi-token module: (N, D)."""
        tokens, layout = self._begin(inputs, there)
        where = layout.positions[None]
        if self.fused is not None and not layout.groups and len(tokens) <= FEW:
            hidden = self.fused(tokens, layout, self.cache, before)
        elif before is not None:
            hidden = self.model.mtp(0, before[None], tokens[None], where, self.cache)[0]
        else:
            hidden = self.model(tokens[None], where, self.cache)[0]
        return hidden

    def _replay(self, graphs: Graphs, inputs: Inputs, there: Tensor | None) -> Tensor:
        """`forward` by a graph; what it gives stays until the next step."""
        count = len(inputs.tokens)
        more = bucket(count) - count
        padded = inputs.padded(more, self.spare, self.size)
        there = None if there is None else F.pad(there, (0, more))
        return graphs(*self._begin(padded, there))[:count]

    def capture(self, most: int) -> Iterator[tuple[int, int]]:
        """Make the graphs of steps of up to `most` tokens, the largest first, whose memory the
        others share: how many of how many there are. Nothing without graphs.
        """
        if self.graphs is None:
            return
        sizes = sorted({bucket(tokens) for tokens in range(1, min(most, MOST) + 1)}, reverse=True)
        none = Inputs(self.tables, [], [], [], [])
        for done, rows in enumerate(sizes, 1):
            if not self.graphs.takes(rows):
                return
            self.graphs(*self._begin(none.padded(rows, self.spare, self.size)))
            yield done, len(sizes)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (R, D) → logits (R, V); of a reward model its scores (R, 1)."""
        if self.model.config.is_reward_model:
            return self.model.score(hidden)[..., None]
        if self.fused is not None and self.fused.ready and len(hidden) <= FEW:
            return self.fused.logits(hidden)
        return self.model.logits(hidden)
