"""Direct preference optimization (Rafailov et al. 2023): Llama 3's form (§4.1.4) or the original.

L = -log σ(β[(log π(y⁺) - log π_ref(y⁺)) - (log π(y⁻) - log π_ref(y⁻))]), log-probabilities summed
over the answer. Llama 3 leaves header and end-of-turn tokens of both answers out of that sum and
adds 0.2 × the chosen answer's token-mean NLL, which keeps the end-of-turn.

B rows, T time, S sequences a row (chosen at 2i, rejected at 2i + 1).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.models.loss import sum_by_sequence, target_log_probs
from llamaseek.train.objectives import Objective, Term
from llamaseek.train.objectives.next_token import balance_terms

EQUAL = 1e-3  # nats: below it two answers have gained the same, but for rounding


class DPO(Objective):
    """Reads `sequence` (B, T; -1 elsewhere), `counts_for_preference` (B, T) and, once they are
    known, `reference` (B, S) from the batch's extras."""

    def __init__(self, beta: float, nll_weight: float, balance_weight: float = 0.0) -> None:
        self.beta = beta
        self.nll_weight = nll_weight
        self.balance_weight = balance_weight

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pairs, and target tokens of chosen answers."""
        pairs = int((batch.extra["pairs"]).sum())
        return {
            "dpo": pairs,
            **dict.fromkeys(("accuracy", "equal", "margin"), pairs),
            "nll": int(chosen_targets(batch).sum()),
            "balance": batch.tokens.shape[0],
        }

    def in_loss(self, batch: Batch) -> int:
        """Tokens whose log-probabilities are compared."""
        return int((batch.extra["counts_for_preference"] > 0).sum())

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """The preference loss, the NLL on chosen answers; to watch, accuracy (pairs whose chosen
        answer is ahead), the share of pairs that are equal, as all are at first, and the margin.
        """
        log_p = target_log_probs(model, batch)
        summed = sum_by_sequence(log_p, batch)
        reward = self.beta * (summed - batch.extra["reference"])
        margins = (reward[:, 0::2] - reward[:, 1::2])[pair_mask(batch)]
        nll = -(log_p * chosen_targets(batch)).sum()
        return [
            Term("dpo", -F.logsigmoid(margins).sum()),
            Term("accuracy", (margins.detach() > 0).float().sum(), 0.0),
            Term("equal", (margins.detach().abs() < self.beta * EQUAL).float().sum(), 0.0),
            Term("margin", margins.detach().sum(), 0.0),
            Term("nll", nll, self.nll_weight),
            *balance_terms(model, batch, self.balance_weight),
        ]


def pair_mask(batch: Batch) -> Tensor:
    """Which pair slots of each row are in use: (B, S / 2) bool."""
    return batch.extra["pairs"] > 0


def chosen_targets(batch: Batch) -> Tensor:
    """Targets of chosen answers: (B, T) bool."""
    sequence = batch.extra["sequence"]
    return (batch.targets != IGNORE) & (sequence >= 0) & (sequence % 2 == 0)
