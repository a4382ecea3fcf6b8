"""Whether a run fits this machine, and what it costs: the planner's memory and time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamaseek.errors import UserError
from llamaseek.herd import ModelConfig
from llamaseek.plan.gpus import Gpu, this_cpu
from llamaseek.plan.planner import USABLE, Planner
from llamaseek.plan.recipe import layout_of_recipe, question_of
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.auto import gpu_of
from llamaseek.units import size


@dataclass(frozen=True)
class Cost:
    """Bytes at the fullest moment of a step, and seconds of the whole run's steps."""

    memory: float
    seconds: float


def fitted(recipe: Recipe, config: ModelConfig, method: str, asked: bool) -> tuple[Recipe, Cost]:
    """The recipe with micro-batches and recomputation that fit the machine, and its cost.

    Adapters on 4 bits take the place of others that do not fit, unless the method was `asked`
    for. UserError where nothing fits.
    """
    gpu = gpu_of(recipe.train.device, 1)
    room, tried = USABLE * gpu.memory, [recipe, *_smaller(recipe)]
    if method == "lora" and not asked:
        nf4 = recipe.with_overrides({"lora.base": "nf4"})
        tried += [nf4, *_smaller(nf4)]
    for one in tried:
        if memory_of(one, config, gpu) <= room:
            return one, cost_of(one, config, gpu)
    least = memory_of(tried[-1], config, gpu)
    smaller = {"full": "--lora or --qlora", "lora": "--qlora"}.get(method if asked else "", "")
    raise UserError(
        f"model: needs {size(least)} to be trained, and {gpu.title} has "
        f"{size(gpu.memory)}" + (f"; allowed: {smaller}" if smaller else "")
    )


def _smaller(recipe: Recipe) -> list[Recipe]:
    """The same run in less memory: a row at a time, then with layers computed again."""
    one = recipe.with_overrides({"train.micro_batch": 1})
    return [one, one.with_overrides({"train.checkpoint_activations": "full"})]


def memory_of(recipe: Recipe, config: ModelConfig, gpu: Gpu) -> float:
    """Bytes of the fullest moment of a step, as the planner counts them."""
    return Planner(question_of(recipe, config, gpu)).memory(layout_of_recipe(recipe)).total


def cost_of(recipe: Recipe, config: ModelConfig, gpu: Gpu) -> Cost:
    """Memory and time; a CPU's rates are measured now."""
    memory = memory_of(recipe, config, gpu)
    timed = replace(this_cpu(), memory=gpu.memory) if gpu.name == "cpu" else gpu
    step = Planner(question_of(recipe, config, timed)).step(layout_of_recipe(recipe))
    return Cost(memory, step.seconds * recipe.train.steps)
