"""Next-token prediction, for pre-training and for answers (SFT, instruction tuning).

What differs between them is in the batch: text has a target at every token, a conversation only
at its answers and their end-of-turn.
"""

from __future__ import annotations

from llamaseek.data.batch import Batch
from llamaseek.models import CausalLM
from llamaseek.models.loss import Kernel, next_token_loss, softmax_and_gradient
from llamaseek.train.objectives import Objective, Term, targets_counted


class NextToken(Objective):
    """-Σ log p(y_t | y_<t) over targets that count, and the balance loss where experts route."""

    def __init__(self, balance_weight: float, kernel: Kernel = softmax_and_gradient) -> None:
        self.balance_weight = balance_weight
        self.kernel = kernel

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets, and rows for the balance loss."""
        return {"next_token": targets_counted(batch), "balance": batch.tokens.shape[0]}

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """Cross-entropy of the next token, and the balance loss."""
        hidden = model(batch.tokens, batch.positions)
        loss = next_token_loss(model.lm_head, hidden, batch.targets, self.kernel)
        return [Term("next_token", loss), *balance_terms(model, batch, self.balance_weight)]


def balance_terms(model: CausalLM, batch: Batch, weight: float) -> list[Term]:
    """The sequence-wise balance loss of the latest forward (V3 report eq. 17), if it has one.

    Rows that only fill up a rank's share (0 in the batch's extra `real`) have none.
    """
    if model.balance_loss is None or weight == 0:
        return []
    real = batch.extra.get("real")
    loss = model.balance_loss if real is None else model.balance_loss * real
    return [Term("balance", loss.sum(), weight)]
