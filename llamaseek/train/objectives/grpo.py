"""Group relative policy optimization (DeepSeek-V3 report eq. 26-28; Shao et al. 2024).

A_i = (r_i - mean r) / std r over the G answers to one prompt. With ρ = π/π_old of a token,
l_t = -min(ρ A, clip(ρ, 1 ± ε) A) + β (e^x - x - 1), x = log π_ref - log π. The forms differ in
what is summed and by what it is divided:

- `dapo`: Σ l_t over all tokens / tokens (TRL's default; its `bnpo` is the same on a whole step);
- `grpo`: each answer's mean of l_t, then the mean of answers;
- `dr_grpo`: Σ l_t / (answers × max_tokens);
- `sequence`: the report's equations as printed: ρ and x of whole answers, the mean of answers.

`kl_ratio` multiplies the KL by ρ, whose gradient is then that of the reverse KL, unbiased
(DeepSeek-V3.2, TRL's default).

B rows (one answer each), T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.recipe.post_training import GrpoRecipe
from llamaseek.train.objectives import Objective, Term, targets_counted
from llamaseek.train.objectives.next_token import balance_terms
from llamaseek.train.objectives.policy import k3, sampled_log_probs


class GRPO(Objective):
    """Reads `advantages` (B) and, where they are there, `old` and `reference` (B, T)."""

    def __init__(
        self, recipe: GrpoRecipe, temperature: float, max_tokens: int, balance_weight: float = 0.0
    ) -> None:
        self.recipe = recipe
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.balance_weight = balance_weight

    def counts(self, batch: Batch) -> dict[str, int]:
        """What each form divides by; tokens for what is watched."""
        answers, tokens = len(batch.tokens), targets_counted(batch)
        form = self.recipe.loss
        count = {"dapo": tokens, "dr_grpo": answers * self.max_tokens}.get(form, answers)
        watched = dict.fromkeys(("kl", "entropy"), tokens)
        clipped = answers if form == "sequence" else tokens
        return {
            "policy": count, "kl_loss": count, **watched, "clip_fraction": clipped,
            "balance": answers,
        }  # fmt: skip

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """Policy loss and KL; KL a token, entropy and clipped share to watch."""
        log_p, entropy = sampled_log_probs(model, batch, self.temperature)
        mask = (batch.targets != IGNORE).to(log_p.dtype)
        old = batch.extra.get("old", log_p.detach())
        reference = batch.extra.get("reference")
        ratio, away = log_p - old, None if reference is None else reference - log_p
        if self.recipe.loss == "sequence":
            ratio, away = _summed(ratio, mask), None if away is None else _summed(away, mask)
        loss, clipped = self.surrogate(ratio.exp(), batch.extra["advantages"][:, None])
        weight = self.weights(mask)
        terms = [Term("policy", (loss * weight).sum())]
        if reference is not None and away is not None:
            kl = k3(away) * (ratio.exp() if self.recipe.kl_ratio else 1.0)
            terms.append(Term("kl_loss", (kl * weight).sum(), self.recipe.beta))
            token_kl = k3((reference - log_p).detach())
            terms.append(Term("kl", (token_kl * mask).sum(), 0.0))
        counted = mask if weight.shape == mask.shape else torch.ones_like(weight)
        return [
            *terms,
            Term("entropy", entropy.sum(), 0.0),
            Term("clip_fraction", (clipped * counted).sum(), 0.0),
            *balance_terms(model, batch, self.balance_weight),
        ]

    def surrogate(self, ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """-min(ρA, clip(ρ)A), and where the clip decides; the shape of `ratio`."""
        low, high = 1 - self.recipe.epsilon, 1 + self.recipe.epsilon
        loss = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        clipped = ((ratio < low) & (advantage < 0)) | ((ratio > high) & (advantage > 0))
        return loss, clipped

    def weights(self, mask: Tensor) -> Tensor:
        """What each token (B, T), or each answer (B, 1), counts in the sum."""
        if self.recipe.loss == "sequence":
            return torch.ones_like(mask[:, :1])
        if self.recipe.loss == "grpo":
            return mask / mask.sum(1, keepdim=True).clamp(min=1)
        return mask


def _summed(per_token: Tensor, mask: Tensor) -> Tensor:
    return (per_token * mask).sum(1, keepdim=True)


def group_advantages(rewards: Tensor, samples: int, scale: bool = True) -> Tensor:
    """Rewards (N) of N / `samples` groups in a row → advantages (N).

    The 1e-4 beside the standard deviation is TRL's; the report has none.
    """
    groups = rewards.view(-1, samples)
    centered = groups - groups.mean(1, keepdim=True)
    if scale:
        centered = centered / (groups.std(1, keepdim=True) + 1e-4)
    return centered.flatten()


def without_signal(rewards: Tensor, samples: int) -> float:
    """Share of groups whose answers are all worth the same: they teach nothing."""
    groups = rewards.view(-1, samples)
    return float((groups.std(1) < 1e-6).float().mean())
