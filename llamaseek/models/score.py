"""Models that return one number per token instead of logits: rewards and values.

B batch, T time, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from llamaseek.herd import ModelConfig
from llamaseek.models import CausalLM, build_model
from llamaseek.models.head import Score, one_number


def reward_model(model: CausalLM) -> CausalLM:
    """A reward model on the trunk of `model`, which it takes over; a fresh `score` on top.

    As transformers' `…ForSequenceClassification`: no bias, no vocabulary, no multi-token modules.
    A reward model comes back as it is.
    """
    if model.config.is_reward_model:
        return model
    config: ModelConfig = replace(model.config.without_multi_token(), is_reward_model=True)
    with torch.device("meta"):
        scorer = build_model(config)
    scorer.model = model.model
    scorer.model.layers = scorer.model.layers[: config.num_hidden_layers]
    weight = model.model.norm.weight
    scorer.score = Score(config.hidden_size, weight.device)
    nn.init.normal_(scorer.score.weight, std=config.initializer_range)
    return scorer


def add_value_head(model: CausalLM) -> None:
    """PPO's value function on the trunk of `model`: `value_head`, at first 0 everywhere."""
    device = model.model.norm.weight.device
    model.value_head = nn.Linear(model.config.hidden_size, 1, device=device)
    nn.init.zeros_(model.value_head.weight)
    nn.init.zeros_(model.value_head.bias)


def token_values(model: CausalLM, hidden: Tensor) -> Tensor:
    """What PPO's value head makes of hidden (..., D): (...), in at least float32."""
    head = model.value_head
    assert isinstance(head, nn.Linear)
    return one_number(head, hidden)
