"""All layers in one call compute what the operators compute one by one, by one thread or two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isnan

import numpy as np
import pytest
import torch

from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.step_layout import Inputs, StepResult
from llamaseek.engine.sampling.sampler import likeliest
from llamaseek.herd.published import ENTRIES
from llamaseek.kernels.build import builder
from llamaseek.models import CausalLM, build_model


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def network(dtype: torch.dtype, name: str = "tiny-llama3") -> CausalLM:
    """Wide enough that two threads share a product."""
    torch.manual_seed(0)
    config = replace(ENTRIES[name].config, hidden_size=256, intermediate_size=640)
    model = build_model(config).eval().to(dtype)
    for moe in model.moe_layers().values():
        moe.gate.float()  # as it is stored
    return model


@torch.inference_mode()
def outcomes(model: CausalLM, whole: bool, sequences: int) -> list[StepResult]:
    """What steps of `sequences` tokens give, each one position further; the last has chunks."""
    runner = Engine(model).runner
    assert runner.fused is not None and runner.fused.whole is not None
    if not whole:
        runner.fused.whole = None
    blocks = np.arange(8 * sequences).reshape(-1, 8)[::-1].copy()
    rows, ones, steps = list(range(sequences)), [1] * sequences, 2 * runner.size + 5
    found = []
    for step in range(steps):
        tokens = [number * 7 + step for number in rows]
        inputs = Inputs(blocks, rows, [step] * sequences, ones, tokens)
        found.append(runner.step(inputs, rows))
    chunks = Inputs(blocks, rows, [steps] * sequences, [3] * sequences, [9] * 3 * sequences)
    return [*found, runner.step(chunks, rows[::2])]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sequences", [1, 5])
@pytest.mark.parametrize("name", ["tiny-llama3", "tiny-deepseek-v3"])
def test_layers_in_one_call(name: str, dtype: torch.dtype, sequences: int) -> None:
    if not builder().build():
        pytest.skip(builder().reason)
    model = network(dtype, name)
    both = outcomes(model, True, sequences), outcomes(model, False, sequences)
    for together, apart in zip(*both, strict=True):
        assert torch.equal(together.hidden, apart.hidden)
        assert torch.equal(together.logits, apart.logits)
        assert (together.best, together.most) == likeliest(apart.logits)


def test_of_equals_the_first_is_likeliest_and_no_number_is_seen() -> None:
    """In one call and by PyTorch: of a head whose rows are equal, and of one with a NaN."""
    if not builder().build():
        pytest.skip(builder().reason)
    model = network(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[:] = model.lm_head.weight[0].clone()
    inputs = Inputs(np.arange(8)[None], [0], [0], [1], [3])
    with torch.inference_mode():
        made = Engine(model).runner.step(inputs, [0])
        assert made.best == [0] == likeliest(made.logits)[0]
        model.lm_head.weight[5, 0] = torch.nan
        made = Engine(model).runner.step(inputs, [0])
    assert made.most is not None and isnan(made.most[0]) and isnan(likeliest(made.logits)[1][0])
