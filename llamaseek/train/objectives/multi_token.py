"""Multi-token prediction (DeepSeek-V3 report §2.2, eq. 21-25).

L = L_main + λ/D Σ_k L_k, each L_k the cross-entropy of the token k + 1 further on, divided by the
same count as the main loss (the report's 1/T, not 1/(T - k)).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.models.loss import Kernel, next_token_loss, softmax_and_gradient
from llamaseek.train.objectives import Objective, Term, targets_counted
from llamaseek.train.objectives.next_token import balance_terms


class MultiToken(Objective):
    """Next-token prediction with D modules that look further ahead."""

    def __init__(
        self,
        depth: int,
        weight: float,
        balance_weight: float,
        kernel: Kernel = softmax_and_gradient,
    ) -> None:
        self.depth = depth
        self.weight = weight
        self.balance_weight = balance_weight
        self.kernel = kernel

    def counts(self, batch: Batch) -> dict[str, int]:
        """Every depth is divided by the main loss's count."""
        count = targets_counted(batch)
        ahead = {f"mtp_{k + 1}": count for k in range(self.depth)}
        return {"next_token": count, **ahead, "balance": batch.tokens.shape[0]}

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """The main loss, one term a depth, and the balance loss of all layers."""
        hidden = model(batch.tokens, batch.positions)
        loss = next_token_loss(model.lm_head, hidden, batch.targets, self.kernel)
        terms = [Term("next_token", loss)]
        tokens, targets = batch.tokens, batch.targets
        for k in range(self.depth):
            tokens, targets = shift(tokens, targets, batch.positions, k + 1)
            hidden = model.mtp(k, hidden, tokens, batch.positions)
            loss = next_token_loss(model.lm_head, hidden, targets, self.kernel)
            terms.append(Term(f"mtp_{k + 1}", loss, self.weight / self.depth))
        return terms + balance_terms(model, batch, self.balance_weight)


def shift(tokens: Tensor, targets: Tensor, positions: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets one place on, within each document: all (B, T).

    `by` is how far the result lies from the row: a place has a target only if the token `by`
    places on is still of its own document, that is, if positions went up by `by`.
    """
    next_tokens, next_targets = tokens.roll(-1, 1), targets.roll(-1, 1)
    inside = positions.roll(-by, 1) == positions + by
    inside[:, -by:] = False
    return next_tokens, torch.where(inside, next_targets, IGNORE)
