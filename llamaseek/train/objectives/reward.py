"""The reward model's loss (Bradley and Terry 1952; Llama 3 §4.1.2 without Llama 2's margin).

L = -log σ(r(x, y⁺) - r(x, y⁻)) over every pair of a row's answers, which stand best first: chosen
over rejected, and edited over both where there is an edited one. r is read at an answer's last
token.

B rows, T time, D width, S answers a row.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from llamaseek.data.batch import Batch
from llamaseek.models import CausalLM
from llamaseek.train.objectives import Objective, Term
from llamaseek.train.objectives.next_token import balance_terms


class BradleyTerry(Objective):
    """Reads `ends` (B, S; -1 where there is no answer) from the batch's extras."""

    def __init__(self, balance_weight: float = 0.0) -> None:
        self.balance_weight = balance_weight

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pairs, and answers."""
        pairs = int(better_and_worse(batch.extra["ends"]).sum())
        answers = int((batch.extra["ends"] >= 0).sum())
        watched = dict.fromkeys(("accuracy", "margin"), pairs)
        return {"reward_loss": pairs, **watched, "score": answers, "balance": len(batch.tokens)}

    def in_loss(self, batch: Batch) -> int:
        """The last tokens of answers, where they are scored."""
        return int((batch.extra["ends"] >= 0).sum())

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """The loss; accuracy, margin and mean score to watch."""
        ends = batch.extra["ends"]
        rewards = answer_scores(model, batch)
        margins = (rewards[:, :, None] - rewards[:, None, :])[better_and_worse(ends)]
        seen = margins.detach()
        right = (seen > 0).float() + (seen == 0).float() / 2
        return [
            Term("reward_loss", -F.logsigmoid(margins).sum()),
            Term("accuracy", right.sum(), 0.0),
            Term("margin", seen.sum(), 0.0),
            Term("score", rewards.detach()[ends >= 0].sum(), 0.0),
            *balance_terms(model, batch, self.balance_weight),
        ]


def answer_scores(model: CausalLM, batch: Batch) -> Tensor:
    """The reward of each answer (B, S); undefined where there is no answer."""
    hidden = model(batch.tokens, batch.positions)
    found: Tensor = model.score(hidden)
    return found.gather(1, batch.extra["ends"].clamp(min=0))


def better_and_worse(ends: Tensor) -> Tensor:
    """Which pairs (i, j) of a row's answers exist, i the better one: (B, S, S) bool."""
    there = ends >= 0
    return (there[:, :, None] & there[:, None, :]).triu(1)
