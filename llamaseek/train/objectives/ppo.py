"""Proximal policy optimization on answers (Schulman et al. 2017; Ouyang et al. 2022).

Reward of a token: -β (log π - log π_ref), and the answer's score at its last token. Advantages by
GAE: δ_t = r_t + γ V_{t+1} - V_t, A_t = δ_t + γ λ A_{t+1}; returns R = A + V; advantages are
whitened over the rollout. With ρ = π/π_old, tokens' mean of
max(-ρ A, -clip(ρ, 1 ± ε) A) + c · ½ max((V - R)², (clip(V, V_old ± ε_v) - R)²).

B rows (one answer each), T time. All (B, T) stand at the places of `targets`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.models.score import token_values
from llamaseek.recipe.post_training import PpoRecipe
from llamaseek.train.objectives import Objective, Term, targets_counted
from llamaseek.train.objectives.next_token import balance_terms
from llamaseek.train.objectives.policy import log_probs_of


class PPO(Objective):
    """Reads `old`, `values`, `advantages` and `returns` (B, T) from the batch's extras."""

    def __init__(self, recipe: PpoRecipe, temperature: float, balance_weight: float = 0.0) -> None:
        self.recipe = recipe
        self.temperature = temperature
        self.balance_weight = balance_weight

    def counts(self, batch: Batch) -> dict[str, int]:
        """Tokens of answers, for everything."""
        tokens = targets_counted(batch)
        names = ("policy", "value", "entropy", "clip_fraction", "moved")
        return {**dict.fromkeys(names, tokens), "balance": len(batch.tokens)}

    def terms(self, model: CausalLM, batch: Batch) -> list[Term]:
        """Policy and value loss; entropy, clipped share and KL from the rollout's policy."""
        hidden = model(batch.tokens, batch.positions)
        log_p, entropy = log_probs_of(model, hidden, batch.targets, self.temperature)
        values = token_values(model, hidden)
        extra, mask = batch.extra, (batch.targets != IGNORE).to(log_p.dtype)
        moved = log_p - extra["old"]
        policy, clipped = self.policy_loss(moved.exp(), extra["advantages"])
        value = self.value_loss(values, extra["values"], extra["returns"])
        return [
            Term("policy", (policy * mask).sum()),
            Term("value", (value * mask).sum(), self.recipe.value_weight),
            Term("entropy", entropy.sum(), 0.0),
            Term("clip_fraction", (clipped * mask).sum(), 0.0),
            Term("moved", ((moved.detach().exp() - 1 - moved.detach()) * mask).sum(), 0.0),
            *balance_terms(model, batch, self.balance_weight),
        ]

    def policy_loss(self, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """max(-ρA, -clip(ρ)A) of each token, and where the clip decides."""
        clip = self.recipe.clip
        plain, held = -ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages
        return torch.maximum(plain, held), held > plain

    def value_loss(self, values: Tensor, old: Tensor, returns: Tensor) -> Tensor:
        """½ max((V - R)², (clip(V) - R)²) of each token."""
        clip = self.recipe.value_clip
        held = old + (values - old).clamp(-clip, clip)
        return torch.maximum((values - returns) ** 2, (held - returns) ** 2) / 2


def token_rewards(log_ratio: Tensor, answers: Tensor, mask: Tensor, kl: float) -> Tensor:
    """-β log(π/π_ref) at each token, and each answer's reward (B) at its last token: (B, T)."""
    rewards = -kl * log_ratio * mask
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    rewards[torch.arange(len(mask)), last] += answers.to(rewards.dtype)
    return rewards


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages (Schulman et al. 2016) and returns: all (B, T), 0 off the mask.

    Each row's answer is one stretch of the mask; after its end there is no value.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    ahead, value_ahead = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * value_ahead - values[:, t]
        ahead = (delta + gamma * lam * ahead) * mask[:, t]
        advantages[:, t], value_ahead = ahead, values[:, t]
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the mask (B, T), 0 off it."""
    kept = values[mask > 0]
    if kept.numel() < 2:
        return values
    return (values - kept.mean()) * (kept.var() + 1e-8).rsqrt() * mask
