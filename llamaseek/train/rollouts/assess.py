"""Advantages of GRPO and PPO from rewarded answers, before the optimizer steps.

N answers, T time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.models.score import token_values
from llamaseek.recipe.post_training import PpoRecipe
from llamaseek.recipe.schema import Recipe
from llamaseek.train.objectives.grpo import group_advantages, without_signal
from llamaseek.train.objectives.policy import log_probs_of
from llamaseek.train.objectives.ppo import advantages_and_returns, token_rewards, whiten
from llamaseek.train.rollouts.rollout import Figures, LogProbScorer


class GroupRelative:
    """Advantages within each prompt's group; old and reference log-probabilities if needed."""

    def __init__(self, recipe: Recipe, scored: LogProbScorer) -> None:
        self.recipe, self.scored = recipe, scored
        # With one step a rollout the policy is the one that sampled, and is its own `old`.
        self.several = recipe.rollout.epochs * recipe.rollout.minibatches > 1

    def __call__(self, batch: Batch, rewards: Tensor) -> tuple[Batch, Figures]:
        samples = self.recipe.rollout.samples
        extra = {"advantages": group_advantages(rewards, samples, self.recipe.grpo.scale)}
        if self.several:
            extra["old"] = self.scored.policy(batch)
        if self.recipe.grpo.beta:
            extra["reference"] = self.scored.reference(batch)
        figures = {
            "reward_std": float(rewards.view(-1, samples).std(1).mean()),
            "no_signal": without_signal(rewards, samples),
        }
        return replace(batch, extra=extra), figures

    def state(self) -> dict[str, Tensor]:
        """Nothing but the weights."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to do."""


class Controller:
    """The KL coefficient β, moved towards a target (Ziegler et al. 2019 §2.2).

    β ← β (1 + clip(KL / target - 1, ±0.2) · n / horizon) after n answers.
    """

    def __init__(self, recipe: PpoRecipe) -> None:
        self.recipe = recipe
        self.kl = recipe.kl

    def update(self, seen: float, answers: int) -> None:
        """`seen` is the mean KL of an answer, in nats."""
        if self.recipe.kl_target is not None:
            error = min(max(seen / self.recipe.kl_target - 1, -0.2), 0.2)
            self.kl *= 1 + error * min(answers / self.recipe.kl_horizon, 1.0)


class ActorCritic:
    """Values, KL in the reward, generalized advantages; PPO's part before the loop."""

    def __init__(self, recipe: Recipe, scored: LogProbScorer) -> None:
        self.recipe, self.scored = recipe, scored
        self.controller = Controller(recipe.ppo)

    def __call__(self, batch: Batch, rewards: Tensor) -> tuple[Batch, Figures]:
        ppo, mask = self.recipe.ppo, (batch.targets != IGNORE).float()
        old, values = self._old_and_values(batch).unbind(-1)
        log_ratio = (old - self.scored.reference(batch)) * mask
        seen = float(log_ratio.sum(1).mean())
        kl = self.controller.kl
        per_token = token_rewards(log_ratio, rewards, mask, kl)
        advantages, returns = advantages_and_returns(per_token, values, mask, ppo.gamma, ppo.lam)
        self.controller.update(seen, len(rewards))
        left = (returns - values)[mask > 0].var() / returns[mask > 0].var().clamp(min=1e-8)
        extra = {
            "old": old, "values": values * mask, "returns": returns,
            "advantages": whiten(advantages, mask),
        }  # fmt: skip
        figures = {"kl": seen, "kl_coefficient": kl, "explained_variance": float(1 - left)}
        return replace(batch, extra=extra), figures

    def _old_and_values(self, batch: Batch) -> Tensor:
        """log p of the answers and the value before each token: (N, T, 2)."""
        temperature = self.recipe.rollout.temperature

        def both(model: CausalLM, micro: Batch) -> Tensor:
            hidden = model(micro.tokens, micro.positions)
            log_p = log_probs_of(model, hidden, micro.targets, temperature)[0]
            return torch.stack((log_p, token_values(model, hidden)), -1)

        return self.scored.run(self.scored.model, batch, both)

    def state(self) -> dict[str, Tensor]:
        """The KL coefficient."""
        return {"kl": torch.tensor(self.controller.kl, dtype=torch.float64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The KL coefficient again."""
        if "kl" in tensors:
            self.controller.kl = float(tensors["kl"])
