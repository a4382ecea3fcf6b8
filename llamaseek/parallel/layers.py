"""Layers of which each rank of a tensor-parallel group holds a share (Megatron-LM, Shoeybi et al.
2019), for training and for inference alike.

What a rank does with its part of a sum differs: training keeps the slice of its own tokens, and
inference wants the sum on every rank. So a layer is given `reduce`, and the head `join`.
R ranks, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.kernels.wide import wide_product
from llamaseek.models.head import Head, Read
from llamaseek.models.recompute import unneeded
from llamaseek.parallel.collectives import own_ids

Collective = Callable[[Tensor], Tensor]


def local(weight: Tensor) -> Tensor:
    """A rank's own numbers of a split weight, with gradients; a plain weight as it is."""
    own = getattr(weight, "to_local", None)  # a DTensor, whose module is slow to import
    return weight if own is None else own()


class ColumnParallelLinear(nn.Linear):
    """A linear layer of which this rank holds some rows of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) → (..., O / R)."""
        return F.linear(x, local(self.weight))


class RowParallelLinear(ColumnParallelLinear):
    """A linear layer of which this rank, `rank`, holds some columns of the weight."""

    rank: int
    reduce: Collective

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I / R) → what `reduce` makes of this rank's part of the sum (..., O)."""
        with unneeded():
            part = super().forward(x)
        return self.reduce(part)


class VocabParallelEmbedding(nn.Embedding):
    """Looks up the ids whose rows of the table this rank holds; all where `rank` is None."""

    rank: int | None
    reduce: Collective

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (...) → what `reduce` makes of this rank's rows (..., D)."""
        weight = local(self.weight)
        if self.rank is None:
            return F.embedding(tokens, weight)
        inside, place = own_ids(tokens, weight.shape[0], self.rank)
        return self.reduce(F.embedding(place, weight).masked_fill(~inside[..., None], 0))


class ParallelLMHead(Head):
    """This rank's rows of the vocabulary; `join` puts all ranks' logits beside each other."""

    join: Collective

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, read: Read | None = None
    ) -> Tensor:
        """hidden (..., D) → logits (..., V), the same on every rank. Losses are a subclass's."""
        return self.join(wide_product(hidden, local(self.weight)))
