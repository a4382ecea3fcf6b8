"""PPO's advantages and losses beside plain loops over the papers' equations."""

from __future__ import annotations

import pytest
import torch

from llamaseek.models import build_model
from llamaseek.models.score import add_value_head
from llamaseek.recipe.post_training import PpoRecipe
from llamaseek.train.objectives.ppo import PPO, advantages_and_returns, token_rewards, whiten
from llamaseek.train.rollouts.assess import Controller
from tests.models.shapes import tiny_config
from tests.train.test_grpo import ANSWERS, batch_of
from tests.train.test_trl import backward
from tests.train.tiny import tiny_tokenizer

GAMMA, LAM = 0.97, 0.9


def test_rewards_and_advantages_are_the_papers() -> None:
    torch.manual_seed(0)
    lengths, first = (3, 5, 1), (2, 0, 4)
    mask = torch.zeros(3, 6)
    for row, (start, length) in enumerate(zip(first, lengths, strict=True)):
        mask[row, start : start + length] = 1
    log_ratio, values = torch.randn(3, 6) * mask, torch.randn(3, 6)
    scores = torch.tensor([1.0, -2.0, 0.5])
    rewards = token_rewards(log_ratio, scores, mask, 0.05)
    advantages, returns = advantages_and_returns(rewards, values, mask, GAMMA, LAM)
    for row, (start, length) in enumerate(zip(first, lengths, strict=True)):
        for t in range(start, start + length):
            wanted, weight = 0.0, 1.0
            for k in range(t, start + length):
                end = k == start + length - 1
                reward = -0.05 * log_ratio[row, k] + (scores[row] if end else 0.0)
                ahead = 0.0 if end else values[row, k + 1]
                wanted += weight * float(reward + GAMMA * ahead - values[row, k])
                weight *= GAMMA * LAM
            assert float(advantages[row, t]) == pytest.approx(wanted, abs=1e-5)
            assert float(returns[row, t]) == pytest.approx(wanted + float(values[row, t]), abs=1e-5)
    assert (advantages * (1 - mask) == 0).all() and (returns * (1 - mask) == 0).all()
    white = whiten(advantages, mask)[mask > 0]
    assert float(white.mean()) == pytest.approx(0, abs=1e-6)
    assert float(white.var()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_losses_are_the_plain_loops(family: str) -> None:
    config = tiny_config(family, vocab_size=tiny_tokenizer().vocab_size)
    torch.manual_seed(0)
    model, old = build_model(config).eval(), build_model(config).eval()
    add_value_head(model)
    torch.nn.init.normal_(model.value_head.weight, std=0.3)
    batch = batch_of(old, None)
    mask = (batch.targets != -100).float()
    for name in ("values", "returns", "advantages"):
        batch.extra[name] = torch.randn(mask.shape) * mask
    recipe = PpoRecipe(clip=0.2, value_clip=0.3, value_weight=0.1)
    model.train = lambda mode=True: model  # type: ignore[assignment]
    found = backward(PPO(recipe, 1.0), model, batch)
    policy = value = 0.0
    for row, (p, n) in enumerate(ANSWERS):
        ids = batch.tokens[row : row + 1, : p + n]
        hidden = model(ids, torch.arange(p + n)[None])
        log_p = model.logits(hidden)[0].log_softmax(-1)
        v = model.value_head(hidden)[0, :, 0]
        for t in range(p - 1, p + n - 1):
            at = {k: float(tensor[row, t]) for k, tensor in batch.extra.items() if tensor.dim() > 1}
            ratio = float((log_p[t, ids[0, t + 1]].detach() - at["old"]).exp())
            clipped = min(max(ratio, 0.8), 1.2)
            policy += max(-ratio * at["advantages"], -clipped * at["advantages"])
            held = at["values"] + min(max(float(v[t]) - at["values"], -0.3), 0.3)
            value += max((float(v[t]) - at["returns"]) ** 2, (held - at["returns"]) ** 2) / 2
    tokens = sum(n for _, n in ANSWERS)
    assert found == pytest.approx((policy + 0.1 * value) / tokens, abs=1e-5)


def test_the_controller_follows_its_target() -> None:
    controller = Controller(PpoRecipe(kl=0.1, kl_target=2.0, kl_horizon=100))
    controller.update(10.0, 50)  # far above: at most +20% × 50 / 100
    assert controller.kl == pytest.approx(0.11)
    controller.update(1.8, 100)
    assert controller.kl == pytest.approx(0.11 * 0.9)
    fixed = Controller(PpoRecipe(kl=0.1))
    fixed.update(10.0, 50)
    assert fixed.kl == 0.1
