"""Layouts: the product of degrees, stages that hold every layer once, plans that fit."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaseek.herd.published import find
from llamaseek.plan.gpus import GPUS, find_gpu
from llamaseek.plan.layout import Layout, stage_layers
from llamaseek.plan.planner import Planner, counts, serving_layouts, training_layouts
from llamaseek.plan.question import ask


@given(layers=st.integers(1, 200), pipeline=st.integers(1, 16))
def test_stages_hold_every_layer_once(layers: int, pipeline: int) -> None:
    held = [layer for s in range(pipeline) for layer in stage_layers(layers, pipeline, s)]
    assert held == list(range(layers))
    sizes = [len(stage_layers(layers, pipeline, s)) for s in range(pipeline)]
    assert max(sizes) - min(sizes) <= 1 and sizes[0] == min(sizes)


def test_405b_has_fewer_layers_at_both_ends_of_sixteen_stages() -> None:
    """126 layers, as the paper balances them (§3.3.2): the first and last stage have one less."""
    sizes = [len(stage_layers(126, 16, stage)) for stage in range(16)]
    assert sizes == [7, *[8] * 14, 7]


@settings(deadline=None, max_examples=60)
@given(
    gpus=st.sampled_from([1, 2, 3, 6, 8, 24, 64, 512, 2048]),
    batch=st.sampled_from([1, 6, 16, 512, 15360]),
    name=st.sampled_from(["llama-3.1-8b", "llama-3.1-405b", "deepseek-v3", "deepseek-lite"]),
)
def test_every_layout_uses_the_gpus_and_divides_what_it_splits(
    gpus: int, batch: int, name: str
) -> None:
    config, gpu = find(name).config, GPUS["h100-80gb"]
    for layout in training_layouts(config, gpu, gpus, batch, 8192):
        assert layout.gpus == gpus
        assert batch % layout.replicas == 0 and batch // layout.replicas >= layout.pipeline
        assert config.num_attention_heads % layout.tensor == 0 and layout.tensor <= gpu.node
        assert layout.replicas % layout.expert == 0
    for layout in serving_layouts(config, gpu, gpus, batch):
        assert layout.gpus == gpus and layout.data <= batch


@pytest.mark.parametrize("task", ["inference", "lora", "sft", "pretrain"])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-70b", "deepseek-v3"])
def test_the_fewest_gpus_fit_and_fewer_do_not(name: str, task: str) -> None:
    planner = Planner(ask(name, "h200", task))
    needed = planner.smallest()
    assert needed is not None
    layout = planner.fastest(needed)
    assert layout is not None and planner.memory(layout).total <= planner.usable
    fewer = [n for n in islice(counts(planner.question.gpu, 1), 600) if n < needed]
    for gpus in fewer:
        assert not any(planner.fits(layout) for layout in planner.layouts(gpus)), gpus


def test_gpus_are_found_by_name_or_by_the_start_of_one() -> None:
    assert find_gpu("H100").name == "h100-80gb" and find_gpu("mi300x-192gb").bf16 > 1e15
    for gpu in GPUS.values():
        assert 20e9 < gpu.memory < 200e9 and gpu.source and gpu.fp8 in (0, gpu.fp8)
        assert gpu.fp32 < gpu.bf16 <= gpu.fp8 or gpu.fp8 == 0
        assert gpu.network <= gpu.link < gpu.bandwidth < gpu.bf16
    cpu = find_gpu("cpu")
    assert cpu.memory > 1e9 and cpu.bf16 > 1e9 and cpu.bandwidth > 1e8 and cpu.node == 1


def test_the_degrees_of_a_layout_are_the_recipes() -> None:
    layout = Layout(data=4, shard=2, tensor=2, pipeline=2, context=1, expert=4)
    assert layout.gpus == 32 and layout.replicas == 8
    assert list(layout.to_dict()) == ["data", "shard", "tensor", "pipeline", "context", "expert"]
