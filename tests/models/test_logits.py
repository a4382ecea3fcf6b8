"""Logits are float32 sums, whatever the weights are in: in bf16 the best two are often equal."""

from __future__ import annotations

import copy

import pytest
import torch

from llamaseek.engine.engine import Engine
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.kernels.build import builder
from llamaseek.kernels.ops import linear
from llamaseek.models.rope import rotate_halves, rotate_interleaved
from tests.models.shapes import rows, tiny_model

SCORED = SamplingParams(max_tokens=1, prompt_logprobs=1)


@torch.inference_mode()
def test_bf16_logits_are_float32_sums() -> None:
    model = tiny_model("llama3", vocab_size=9001).to(torch.bfloat16).eval()
    hidden = model(*rows())
    logits = model.logits(hidden)
    assert logits.dtype == torch.float32
    exact = hidden.double() @ model.lm_head.weight.double().T
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert (logits != logits.bfloat16().float()).any()


@torch.inference_mode()
def test_the_kernels_without_cpp_sum_in_float32_too() -> None:
    x, weight = torch.randn(3, 64), torch.randn(11, 64).bfloat16()
    found = linear(x, None, 0.0, [weight], [], 16, None, False)
    exact = x.bfloat16().double() @ weight.double().T
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_engine_draws_from_float32_logits(dtype: torch.dtype) -> None:
    model = tiny_model("llama3").to(dtype).eval()
    runner = Engine(model).runner
    if not builder().build():
        pytest.skip("no C++ compiler, no kernels")
    hidden = torch.randn(2, model.config.hidden_size).to(dtype)
    logits = runner.logits(hidden)
    exact = hidden.double() @ model.lm_head.weight.double().T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
def test_the_engine_sums_over_layers_in_float32(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What layers add to a large embedding is not rounded away: in bf16, 0.5 on 256 would be.

    Sums in bf16 are off by 0.008 and 0.010.
    """
    if not builder().build():
        pytest.skip("no C++ compiler, no kernels")
    if not fused:
        monkeypatch.setattr(builder(), "ready", False)
        monkeypatch.setattr(builder(), "reason", "not in this test")
    model = tiny_model("llama3", num_hidden_layers=6).to(torch.bfloat16).eval()
    model.model.embed_tokens.weight.mul_(200)
    exact = copy.deepcopy(model).float()
    tokens = rows(batch=1, time=9)[0]
    prompt = tokens[0].tolist()
    found = Engine(model).generate([Request(prompt=prompt, params=SCORED)])[0].prompt_logprobs
    logits = exact.logits(exact(tokens, torch.arange(9)[None]))[0].log_softmax(-1)
    wanted = [float(logits[i, token]) for i, token in enumerate(prompt[1:])]
    ours = [score.logprob for score in found[1:]]
    assert max(abs(a - b) for a, b in zip(ours, wanted, strict=True)) < 0.005


def test_angles_are_not_rounded() -> None:
    """At position 1,000 a bf16 sine is off by up to 0.004; the result is rounded once."""
    x = torch.randn(1, 4, 2, 8).bfloat16()
    angles = torch.tensor([0.3, 97.1, 512.4, 1000.7])[None, :, None, None] * torch.rand(4)
    cos, sin = angles.cos(), angles.sin()
    for rotate in (rotate_halves, rotate_interleaved):
        found = rotate(x, cos, sin)
        wanted = rotate(x.double(), cos.double(), sin.double())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted.bfloat16(), rtol=2**-8, atol=1e-6)
