"""The loss of a reward model that learns from ratings of single answers, without pairs.

L = -q log σ(r) - (1 - q) log(1 - σ(r)), where r is the reward at an answer's last token and q its
rating on a scale from 0 to 1: the cross-entropy of two Bernoulli distributions, least where
σ(r) is the mean rating of such answers. An answer that is only good or bad has q = 1 or 0.

B rows.
"""

from __future__ import annotations

from torch.nn.functional import binary_cross_entropy_with_logits as entropy

from llamaseek.data.batch import Batch
from llamaseek.models import CausalLM
from llamaseek.train.objectives import Term
from llamaseek.train.objectives.next_token import balance_terms
from llamaseek.train.objectives.reward import BradleyTerry, answer_scores


class Rated(BradleyTerry):
    """Reads `ends` (B, 1) and `rating` (B, 1) from the batch's extras."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Answers."""
        rows = len(batch.tokens)
        return dict.fromkeys(("rating_loss", "accuracy", "score", "balance"), rows)

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """The loss; to watch, the mean score and the share of answers on their rating's side."""
        scores, rating = answer_scores(model, batch).float(), batch.extra["rating"].float()
        right = (scores > 0) == (rating > 0.5)
        return [
            Term("rating_loss", entropy(scores, rating, reduction="sum")),
            Term("accuracy", right.sum(), 0.0),
            Term("score", scores.detach().sum(), 0.0),
            *balance_terms(model, batch, self.balance_weight),
        ]
