"""`parallel: auto`: the planner's layout for a recipe's model on the GPUs that were started."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from llamaseek.errors import UserError, bad_value
from llamaseek.herd import ModelConfig
from llamaseek.plan.gpus import GPUS, Gpu, find_gpu, found_gpu, this_cpu
from llamaseek.plan.layout import Layout
from llamaseek.plan.planner import Planner
from llamaseek.plan.recipe import question_of
from llamaseek.recipe.parallel import ParallelRecipe
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.world import local_ranks

# FLOP/s and bytes a second of a CPU. Not measured: all ranks must come to the same layout.
CPU_RATES = (1e11, 2e10)


def choose(
    recipe: Recipe, config: ModelConfig, ranks: int, runs: Callable[[ParallelRecipe], bool]
) -> ParallelRecipe:
    """The planner's fastest layout of all ranks that fits and that `runs`; what else the section
    says stays. `UserError` where there is none, and for degrees given beside `auto`.
    """
    given = recipe.parallel
    for name in Layout().to_dict():
        if getattr(given, name) > 1:
            raise bad_value(
                f"parallel.{name}", getattr(given, name), "1 beside auto, which sets it"
            )

    def plan(layout: Layout) -> ParallelRecipe:
        return given.model_copy(update={**layout.to_dict(), "auto": False})

    question = question_of(recipe, config, gpu_of(recipe.train.device, ranks))
    best = Planner(question).fastest(ranks, lambda layout: runs(plan(layout)))
    if best is None:
        allowed = f"degrees of your own: none fits {ranks} of {question.gpu.title}"
        raise bad_value("parallel", "auto", allowed)
    return plan(best)


def gpu_of(device: str, ranks: int) -> Gpu:
    """What each rank computes on: the GPU that LLAMASEEK_GPU names, the one found here, or a
    rank's share of this machine's processor. `UserError` where a GPU is wanted and none known.
    """
    named = os.environ.get("LLAMASEEK_GPU", "")
    if device != "cpu" and named not in ("", "cpu"):
        return find_gpu(named)
    found = found_gpu() if device != "cpu" and not named else None
    if found is not None:
        return found
    if device.startswith("cuda"):
        names = ", ".join(GPUS)
        raise UserError(f"LLAMASEEK_GPU: names no GPU, and none was found; allowed: {names}")
    cpu = this_cpu(CPU_RATES)
    return replace(cpu, memory=cpu.memory / local_ranks(default=ranks))
