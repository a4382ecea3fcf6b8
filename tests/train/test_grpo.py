"""GRPO beside TRL's token-level forms, and the report's sequence-level form beside a plain loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.batch import Batch
from llamaseek.models import CausalLM, build_model
from llamaseek.recipe.post_training import GrpoRecipe
from llamaseek.train.objectives.grpo import GRPO, group_advantages, without_signal
from llamaseek.train.objectives.policy import sampled_log_probs
from llamaseek.train.rewards import Episode
from llamaseek.train.rollouts.rollout import episode_batch
from llamaseek.train.saving.state import save_folder
from tests.models.shapes import tiny_config
from tests.train.test_trl import arguments, backward, close
from tests.train.tiny import tiny_tokenizer

MOST = 12  # tokens of an answer
ANSWERS = ((5, 3), (5, 12), (9, 7), (9, 1))  # tokens of prompt and answer
ADVANTAGES = torch.tensor([1.0, -0.7, 0.4, -1.2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("policy")
    config = tiny_config("llama3", vocab_size=tiny_tokenizer().vocab_size)
    save_folder(made, build_model(config), tiny_tokenizer())
    return made


def batch_of(old: CausalLM, reference: CausalLM | None) -> Batch:
    """Four answers of random tokens, with what other models make of them."""
    torch.manual_seed(1)
    episodes = [
        Episode("", {}, torch.randint(0, 300, (p,)).tolist(), torch.randint(0, 300, (n,)).tolist(),
                "", True)
        for p, n in ANSWERS
    ]  # fmt: skip
    batch = episode_batch(episodes)
    with torch.no_grad():
        batch.extra["old"] = sampled_log_probs(old, batch)[0]
        if reference is not None:
            batch.extra["reference"] = sampled_log_probs(reference, batch)[0]
    batch.extra["advantages"] = ADVANTAGES
    return batch


def moved(model: CausalLM, by: float, seed: int) -> CausalLM:
    """The model with noise on its weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


def trl_inputs(batch: Batch) -> dict[str, Any]:
    """The same answers as TRL lays them out: prompts padded left, answers right."""
    longest = max(p for p, _ in ANSWERS)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    sizes = (longest, longest, MOST, MOST)
    out = {k: torch.zeros(4, n, dtype=torch.long) for k, n in zip(names, sizes, strict=True)}
    shifted = {name: torch.zeros(4, MOST) for name in ("old", "reference") if name in batch.extra}
    for row, (p, n) in enumerate(ANSWERS):
        out["prompt_ids"][row, longest - p :] = batch.tokens[row, :p]
        out["prompt_mask"][row, longest - p :] = 1
        out["completion_ids"][row, :n] = batch.tokens[row, p : p + n]
        out["completion_mask"][row, :n] = 1
        for name, tensor in shifted.items():
            tensor[row, :n] = batch.extra[name][row, p - 1 : p - 1 + n]
    renamed = {"old": "old_per_token_logps", "reference": "ref_per_token_logps"}
    return {
        **out, **{renamed[name]: tensor for name, tensor in shifted.items()},
        "advantages": ADVANTAGES, "num_items_in_batch": torch.tensor(sum(n for _, n in ANSWERS)),
    }  # fmt: skip


def trl_trainer(folder: Path, out: Path, form: str, beta: float, ratio: bool) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    some = arguments(out)
    del some["max_length"]
    some["per_device_train_batch_size"] = 4
    return GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            **some, loss_type=form, beta=beta, epsilon=0.2, num_generations=4,
            max_completion_length=MOST, steps_per_generation=1, temperature=1.0,
            use_bias_correction_kl=ratio,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip


@pytest.mark.parametrize("beta, ratio", [(0.0, False), (0.04, False), (0.04, True)])
@pytest.mark.parametrize(
    "form, theirs",
    [("dapo", "dapo"), ("dapo", "bnpo"), ("grpo", "grpo"), ("dr_grpo", "dr_grpo")],
)
def test_token_level_forms_match_trl(
    form: Any, theirs: str, beta: float, ratio: bool, folder: Path, tmp_path: Path
) -> None:
    old, reference = (moved(load_model(folder), 0.02, seed) for seed in (2, 3))
    batch = batch_of(old, reference if beta else None)
    trainer = trl_trainer(folder, tmp_path, theirs, beta, ratio)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, trl_inputs(batch))
    loss.backward()
    ours = load_model(folder)
    objective = GRPO(GrpoRecipe(loss=form, beta=beta, kl_ratio=ratio), 1.0, MOST)
    assert backward(objective, ours, batch) == pytest.approx(float(loss.detach()), abs=1e-5)
    close(ours, trainer.model)
    clipped = next(t for t in objective.terms(ours, batch) if t.name == "clip_fraction")
    assert float(clipped.sum) > 0  # both sides of the clip were seen


def plain_sequence_loss(model: CausalLM, batch: Batch, beta: float, epsilon: float) -> Tensor:
    """Eq. 26-28 of the report, one answer after another."""
    total = torch.zeros(())
    for row, (p, n) in enumerate(ANSWERS):
        ids = batch.tokens[row : row + 1, : p + n]
        logits = model.logits(model(ids, torch.arange(p + n)[None]))[0].log_softmax(-1)
        log_p = sum((logits[t - 1, ids[0, t]] for t in range(p, p + n)), torch.zeros(()))
        old = batch.extra["old"][row].sum()
        ratio, advantage = (log_p - old).exp(), ADVANTAGES[row]
        low, high = 1 - epsilon, 1 + epsilon
        gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        x = batch.extra["reference"][row].sum() - log_p
        total = total + gain - beta * (x.exp() - x - 1)
    return -total / len(ANSWERS)


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_the_sequence_level_form_is_the_reports(family: str) -> None:
    config = tiny_config(family, vocab_size=tiny_tokenizer().vocab_size)
    torch.manual_seed(0)
    model, twin = build_model(config).eval(), build_model(config).eval()
    twin.load_state_dict(model.state_dict())
    old, reference = build_model(config).eval(), build_model(config).eval()
    for other, seed in ((old, 2), (reference, 3)):
        other.load_state_dict(model.state_dict())
        moved(other, 0.005, seed)
    batch = batch_of(old, reference)
    objective = GRPO(GrpoRecipe(loss="sequence", beta=0.04), 1.0, MOST)
    model.train = lambda mode=True: model  # type: ignore[assignment] # no load counted
    found = backward(objective, model, batch)
    wanted = plain_sequence_loss(twin, batch, 0.04, 0.2)
    wanted.backward()
    assert found == pytest.approx(float(wanted.detach()), abs=1e-5)
    close(model, twin)


def test_advantages_are_each_groups_own() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    found = group_advantages(rewards, 4)
    deviation = math.sqrt(sum((r - 0.5) ** 2 for r in (1, 0, 0, 1)) / 3)
    wanted = [(r - 0.5) / (deviation + 1e-4) for r in (1, 0, 0, 1)] + [0.0] * 4
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert group_advantages(rewards, 4, scale=False)[:4].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert without_signal(rewards, 4) == 0.5
