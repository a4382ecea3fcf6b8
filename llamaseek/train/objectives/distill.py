"""Distillation from a teacher's logits (Hinton et al. 2015).

L = (1 - w) CE + w τ² KL(p_teacher ‖ p_student), both softmaxes at temperature τ, on the tokens
that have targets. B rows, T time, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.models.head import Softmax
from llamaseek.models.layers import widen
from llamaseek.models.loss import chunk_length, next_token_loss
from llamaseek.recipe.post_training import DistillRecipe
from llamaseek.train.objectives import Objective, Term, targets_counted
from llamaseek.train.objectives.next_token import balance_terms


class Distill(Objective):
    """Cross-entropy of the rows, and the KL to a frozen teacher of the same vocabulary."""

    def __init__(
        self, teacher: CausalLM, recipe: DistillRecipe, balance_weight: float = 0.0
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.recipe = recipe
        self.balance_weight = balance_weight

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets, for both parts."""
        count = targets_counted(batch)
        return {"next_token": count, "distill": count, "balance": len(batch.tokens)}

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """Cross-entropy, and the KL to the teacher."""
        hidden = model(batch.tokens, batch.positions)
        loss = next_token_loss(model.lm_head, hidden, batch.targets)
        weight, heat = self.recipe.weight, self.recipe.temperature
        kl = self._kl(model, hidden, batch) * heat**2
        return [
            Term("next_token", loss, 1 - weight),
            Term("distill", kl, weight),
            *balance_terms(model, batch, self.balance_weight),
        ]

    def _kl(self, model: CausalLM, hidden: Tensor, batch: Batch) -> Tensor:
        self.teacher.to(hidden.device)
        with torch.no_grad():
            taught = self.teacher(batch.tokens, batch.positions)
        table = self.teacher.lm_head.weight

        def read(h: Tensor, weight: Tensor, t: Tensor, softmax: Softmax | None = None) -> Tensor:
            assert softmax is None, "distillation needs the whole vocabulary on each rank"
            kept = t != IGNORE
            size = chunk_length(weight)
            parts = [
                checkpoint(self._chunk, a, weight, b, table, use_reentrant=False)
                for a, b in zip(h[kept].split(size), taught[kept].split(size), strict=True)
            ]
            return torch.stack(parts).sum() if parts else widen(h.sum() * 0)

        found: Tensor = model.lm_head(hidden, batch.targets, read)
        return found

    def _chunk(self, student: Tensor, weight: Tensor, teacher: Tensor, table: Tensor) -> Tensor:
        """Σ KL over tokens: student, teacher (N, D), their heads (V, D)."""
        heat = self.recipe.temperature
        ours = (widen(F.linear(student, weight)) / heat).log_softmax(-1)
        theirs = (widen(F.linear(teacher, table)) / heat).log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum()
