"""Predicted peaks against torch's memory tracker, small; `bench/memory.py` has the twelve cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.memory import CASES, SIZES, Case, measure, predict
from llamaseek.herd.published import ENTRIES, find
from llamaseek.herd.tensors import count_parameters
from llamaseek.plan.activations import TrainingPass
from llamaseek.plan.formats import FORMATS
from llamaseek.plan.layout import Layout
from llamaseek.plan.memory import Training, training_memory
from llamaseek.plan.serving import Serving, serving_memory, weight_bytes

CPU = torch.device("cpu")


def test_the_benchmark_has_twelve_cases_of_both_families() -> None:
    assert len(CASES) == len({case.name for case in CASES}) == 12
    for family in SIZES:
        tasks = {(c.task, c.checkpoint) for c in CASES if c.family == family}
        assert {("adamw", False), ("adamw", True), ("lora", True), ("inference", False)} <= tasks


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_predicted_peak_is_within_a_tenth_of_the_measured_one(case: Case) -> None:
    small = {"vocab_size": 2048, "hidden_size": 96, "intermediate_size": 320}
    layers = {"num_hidden_layers": 2}
    case = replace(case, rows=2, length=160, sizes={**case.sizes, **small, **layers})
    assert predict(case, CPU) == pytest.approx(measure(case, CPU), rel=0.1)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b", "deepseek-v3"])
def test_weights_are_the_parameters_in_the_dtype(name: str) -> None:
    config = find(name).config
    count = count_parameters(config).total
    assert weight_bytes(config, FORMATS["bf16"]) == 2 * count
    assert weight_bytes(config, FORMATS["fp32"]) == 4 * count


def test_training_states_are_sixteen_bytes_a_parameter() -> None:
    for entry in ENTRIES.values():
        memory = training_memory(entry.config, Training(TrainingPass(1, 64)))
        states = memory.weights + memory.gradients + memory.optimizer
        assert states == 16 * count_parameters(entry.config).total, entry.name


def test_checkpointing_keeps_less_and_more_gpus_hold_less() -> None:
    config = find("llama-3.1-70b").config
    run = TrainingPass(1, 8192)
    plain = training_memory(config, Training(run))
    again = training_memory(config, Training(run, checkpoint=True))
    assert again.activations < plain.activations / 10
    last = again.total
    for shard in (2, 8, 64):
        memory = training_memory(config, Training(run, checkpoint=True), Layout(shard=shard))
        assert memory.total < last
        assert memory.optimizer == pytest.approx(again.optimizer / shard)
        last = memory.total


def test_a_latent_cache_is_whole_on_every_tensor_rank_and_key_heads_are_split() -> None:
    serving = Serving(rows=4, length=1000, step=16)
    for name, share in (("llama-3.1-8b", 8), ("deepseek-v3", 1)):
        config = find(name).config
        alone = serving_memory(config, FORMATS["bf16"], serving)
        split = serving_memory(config, FORMATS["bf16"], serving, Layout(tensor=8))
        assert split.cache == alone.cache / share
        assert split.weights == pytest.approx(alone.weights / 8, rel=1e-3)


def test_published_layouts_fit_their_gpus() -> None:
    """Llama 3 §3.3.2, table 4; DeepSeek-V3 report §3.2: both ran on 80 GB."""
    llama = Training(TrainingPass(1, 8192), checkpoint=True)
    layout = Layout(shard=128, tensor=8, pipeline=16)
    for stage in (0, 1, 15):
        memory = training_memory(find("llama-3.1-405b").config, llama, layout, stage, 16)
        assert 5e9 < memory.total < 80e9
    deepseek = Training(TrainingPass(1, 4096), moments=4, checkpoint=True, depth=1)
    layout = Layout(shard=128, pipeline=16, expert=64)
    for stage in (0, 1, 15):
        memory = training_memory(find("deepseek-v3").config, deepseek, layout, stage, 120)
        assert 5e9 < memory.total < 80e9
