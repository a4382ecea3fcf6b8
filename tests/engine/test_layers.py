"""All layers in one call compute what the operators compute one by one, by one thread or two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.runner import Inputs
from llamaseek.herd.published import ENTRIES
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM, build_model


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def network(dtype: torch.dtype) -> CausalLM:
    """Wide enough that two threads share a product."""
    torch.manual_seed(0)
    config = replace(ENTRIES["tiny-llama3"].config, hidden_size=256, intermediate_size=640)
    return build_model(config).eval().to(dtype)


@torch.inference_mode()
def hidden(model: CausalLM, whole: bool, sequences: int) -> list[Tensor]:
    """The last hidden states of steps of `sequences` tokens, each one position further."""
    runner = Engine(model).runner
    assert runner.fused is not None and runner.fused.dense is not None
    if not whole:
        runner.fused.dense = None
    tables = np.arange(sequences)[:, None] * 3 + np.arange(3)
    ones = np.ones(sequences, np.int64)
    found = []
    for step in range(2 * runner.size + 5):
        tokens = np.arange(sequences) * 7 + step
        found.append(runner.forward(Inputs(tables, ones * step, ones, tokens))[0].clone())
    return found


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sequences", [1, 5])
def test_layers_in_one_call(dtype: torch.dtype, sequences: int) -> None:
    if not builder().build():
        pytest.skip(builder().reason)
    model = network(dtype)
    for together, apart in zip(
        hidden(model, True, sequences), hidden(model, False, sequences), strict=True
    ):
        assert torch.equal(together, apart)
