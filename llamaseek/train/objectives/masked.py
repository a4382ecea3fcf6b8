"""Masked language modeling (BERT §3.1): 15% of tokens are chosen; of those 80% become the mask
token, 10% a random token, 10% stay; the model, run bidirectionally, predicts the originals.
"""

from __future__ import annotations

import torch

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models.loss import Kernel, softmax_and_gradient
from llamaseek.train.objectives.next_token import NextToken


class Masked(NextToken):
    """Cross-entropy of the chosen tokens alone. Expects a model built with is_causal=False."""

    def __init__(
        self,
        seed: int,
        mask_id: int,
        ordinary_ids: int,
        balance_weight: float,
        kernel: Kernel = softmax_and_gradient,
    ) -> None:
        super().__init__(balance_weight, kernel)
        self.seed = seed
        self.mask_id = mask_id
        self.ordinary_ids = ordinary_ids  # ids below this are text; random tokens come from them

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Corrupt the row, by seed and step alone. Special tokens and padding stay."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        shape = batch.tokens.shape
        draw = torch.rand(shape, generator=generator)
        how = torch.rand(shape, generator=generator)
        other = torch.randint(0, self.ordinary_ids, shape, generator=generator)
        padding = (batch.positions == 0) & (batch.targets == IGNORE)
        chosen = (draw < 0.15) & (batch.tokens < self.ordinary_ids) & ~padding
        tokens = torch.where(chosen & (how < 0.8), self.mask_id, batch.tokens)
        tokens = torch.where(chosen & (how >= 0.9), other, tokens)
        targets = torch.where(chosen, batch.tokens, IGNORE)
        return Batch(tokens, batch.positions, targets)
