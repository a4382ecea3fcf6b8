"""Rollouts from a copy of the model in bf16, brought up to date in place, as GPUs have it."""

from __future__ import annotations

import pytest
import torch

from llamaseek.models import CausalLM, build_model
from llamaseek.models.lora import add_lora
from llamaseek.models.recompute import recompute
from llamaseek.train.rollouts import answers
from llamaseek.train.rollouts.answers import AnswerSampler, Prompt
from llamaseek.train.rollouts.narrow import narrow_copy, refresh
from tests.models.shapes import tiny_config
from tests.train.tiny import tiny_tokenizer

FAMILIES = ["llama3", "deepseek_v3"]


def made(family: str) -> CausalLM:
    torch.manual_seed(0)
    return build_model(tiny_config(family, vocab_size=tiny_tokenizer().vocab_size))


def in_bf16(model: CausalLM) -> CausalLM:
    """Another model with the same weights, rounded."""
    other = build_model(model.config).eval()
    other.load_state_dict(model.state_dict())
    for weight in other.parameters():
        weight.data = weight.data.bfloat16()
    return other


def trained(model: CausalLM) -> None:
    """A step, after which the model holds what its gradient needed."""
    tokens = torch.arange(12)[None]
    loss = model(tokens, tokens).square().mean()
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * torch.randn_like(weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_computes_what_the_narrow_model_does(family: str) -> None:
    model, tokens = made(family), torch.arange(12)[None]
    recompute(model.model.layers, "full")
    trained(model)
    copied = narrow_copy(model, torch.bfloat16)
    where = [weight.data_ptr() for weight in copied.parameters()]
    trained(model)
    refresh(copied, model)
    assert where == [weight.data_ptr() for weight in copied.parameters()]
    wanted = in_bf16(model)
    with torch.no_grad():
        assert torch.equal(copied(tokens, tokens), wanted(tokens, tokens))
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert model.training and not copied.training


def test_frozen_weights_and_the_routing_bias_are_not_kept_twice() -> None:
    model = made("deepseek_v3").to(torch.bfloat16).requires_grad_(False)
    add_lora(model, 4, 8.0, ["q_proj"])
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    copied = narrow_copy(model, torch.bfloat16)
    own = {id(weight) for weight in (*model.parameters(), *model.buffers())}
    apart = {n for n, weight in copied.named_parameters() if id(weight) not in own}
    assert apart == {n for n, weight in model.named_parameters() if weight.requires_grad}
    assert all(id(buffer) in own for buffer in copied.buffers())


def test_answers_come_from_the_weights_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "COPIED", ("cpu",))
    model, prompts = made("llama3"), [Prompt("", {}, [5, 6, 7], [])]

    def drawn(speaker: CausalLM, precision: str | None) -> list[int]:
        sampler = AnswerSampler(speaker, tiny_tokenizer(), 16, 0, precision)
        return sampler.draw(prompts, 1, 0.0, "now")[0].answer

    sampler = AnswerSampler(model, tiny_tokenizer(), 16, 0, "bf16")
    for moment in ("first", "second"):
        found = sampler.draw(prompts, 1, 0.0, moment)[0].answer
        assert found == drawn(in_bf16(model), None)
        trained(model)
    assert sampler.copied is not None and sampler.engine is not None
