"""`plan --recipe` beside `train-plan`: one formula, counts from the config and from a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaseek.herd.published import find
from llamaseek.plan.gpus import find_gpu, rates_of
from llamaseek.plan.layout import Layout, Running
from llamaseek.plan.recipe import recipe_answer
from llamaseek.plan.step import Work, step_time
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.reading import find_recipe
from llamaseek.runtime.check import model_config, resolve
from tests.cli.run import process

# Of `llamaseek train-plan NAME --gpu GPU --json`; the last test here holds the file to it.
TRACED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("train_plan.json").read_text()
)


def planned(name: str, gpu: str, *overrides: str) -> dict[str, Any]:
    recipe = resolve(load_recipe(find_recipe(name), list(overrides)), None)
    return recipe_answer(recipe, model_config(recipe), find_gpu(gpu))


@pytest.mark.parametrize("name", TRACED)
def test_published_layouts_take_the_time_and_memory_that_traced_ranks_do(name: str) -> None:
    traced = TRACED[name]
    found = planned(name, traced["gpu"])
    assert found["step_seconds"] == pytest.approx(traced["step_seconds"], rel=0.02)
    assert found["bytes_per_gpu"]["total"] == pytest.approx(traced["bytes"], rel=0.05)
    assert found["fits"]


SMALL = ["train.micro_batch=1", "data.length=2048", "model.config.max_position_embeddings=2048"]


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
@pytest.mark.parametrize("kept", ["none", "selective", "full"])
def test_products_and_sends_are_those_of_a_traced_rank(family: str, kept: str) -> None:
    """At another shape, degree and kept activations than the published ones."""
    from llamaseek.dry_run.answer import plan_training

    degrees = ["parallel.tensor=2", "parallel.data=2", f"train.checkpoint_activations={kept}"]
    recipe = load_recipe(find_recipe(f"quickstart-{family}"), [*SMALL, *degrees])
    traced = plan_training(recipe, find_gpu("h100"), "bf16").step.slot
    slot = planned(f"quickstart-{family}", "h100", *SMALL, *degrees)["micro_batch_seconds"]
    assert slot["products"] == pytest.approx(traced.products, rel=0.05)
    assert slot["sends"] == pytest.approx(traced.sends, rel=0.1)


def test_a_step_idles_in_the_pipeline() -> None:
    rates = rates_of(find_gpu("h100"), "bf16")
    work = Work(product_flops=rates.products)  # a second
    for running, idle in ((Running(), 3), (Running(stages_per_rank=3), 1)):
        found = step_time([work], Layout(pipeline=4), running, 8, rates)
        assert found.seconds == pytest.approx(8 + idle) and found.bubble == pytest.approx(idle)


def test_sampled_answers_add_a_cache_a_reference_and_time() -> None:
    def asked(*overrides: str) -> dict[str, Any]:
        recipe = load_recipe(find_recipe("smollm2-135m-grpo"), list(overrides))
        return recipe_answer(recipe, find("smollm2-135m-instruct").config, find_gpu("h100"))

    plain, found = asked("grpo.beta=0"), asked("grpo.beta=0.1")
    token = 30 * 2 * 192 * 2  # layers, keys and values, their width, bf16
    held = plain["bytes_per_gpu"]
    assert held["weights"] == pytest.approx((4 + 2) * plain["parameters"], rel=1e-3)  # and a copy
    assert plain["bytes_per_gpu"]["cache"] == 2 * 256 * 768 * token
    reference = found["bytes_per_gpu"]["total"] - plain["bytes_per_gpu"]["total"]
    assert reference == pytest.approx(2 * found["parameters"], rel=1e-3)
    assert 0 < plain["sampling_seconds"] < found["sampling_seconds"] < found["step_seconds"]
    longer = asked("grpo.beta=0", "rollout.max_tokens=512")
    assert longer["sampling_seconds"] == pytest.approx(2 * plain["sampling_seconds"])
    several = asked("grpo.beta=0", "rollout.minibatches=2")  # and the policy's own pass
    assert several["bytes_per_gpu"]["cache"] == plain["bytes_per_gpu"]["cache"]
    small = find_gpu("rtx4090-24gb")
    recipe = load_recipe(find_recipe("smollm2-135m-grpo"), ["data.length=2048"])
    held = recipe_answer(recipe, find("smollm2-135m-instruct").config, small)["bytes_per_gpu"]
    assert held["cache"] == pytest.approx((small.memory - held["weights"]) / 2)
    split = asked("parallel.shard=2", "grpo.beta=0")["bytes_per_gpu"]
    assert split["total"] >= 3 / 2 * 4 * plain["parameters"]


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_the_fixture_is_what_train_plan_says(name: str) -> None:
    traced = TRACED[name]
    found = json.loads(process("train-plan", name, "--gpu", traced["gpu"], "--json").out)
    assert found["step_seconds"] == pytest.approx(traced["step_seconds"], rel=1e-6)
    assert max(rank["bytes"]["total"] for rank in found["per_rank"]) == traced["bytes"]
