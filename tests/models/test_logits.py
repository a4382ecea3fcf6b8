"""Logits are float32 sums, whatever the weights are in: in bf16 the best two are often equal."""

from __future__ import annotations

import pytest
import torch

from llamaseek.engine.engine import Engine
from llamaseek.kernels.build import builder
from llamaseek.kernels.ops import linear
from tests.models.shapes import rows, tiny_model


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
