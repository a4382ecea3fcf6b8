"""A recipe as a question to the planner: its model and rows, and its own layout answered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llamaseek.errors import bad_value
from llamaseek.herd import ModelConfig
from llamaseek.herd.tensors import count_parameters
from llamaseek.plan.flops import trained_modules
from llamaseek.plan.gpus import Gpu
from llamaseek.plan.layout import Layout, running_of
from llamaseek.plan.planner import Planner
from llamaseek.plan.question import Question, ask
from llamaseek.plan.serving import sampling_of

if TYPE_CHECKING:
    from llamaseek.recipe.schema import Recipe


def question_of(
    recipe: Recipe, config: ModelConfig, gpu: Gpu, dtype: str | None = None
) -> Question:
    """What a recipe asks, its products in `dtype` or in what its precision says."""
    train = recipe.train
    task = "pretrain" if recipe.stage == "pretrain" else "sft"
    narrow = train.precision == "bf16" or (train.precision == "auto" and gpu.name != "cpu")
    question = ask(
        None,
        gpu,
        "lora" if recipe.lora is not None else task,
        dtype or ("fp8" if train.float8 != "none" else "bf16" if narrow else "fp32"),
        params=1,
        context=recipe.data.length,
        batch=train.batch,
        checkpointing=train.checkpoint_activations,
    )
    moments = 4 if train.moments == "bf16" else 8
    return replace(
        question,
        title=recipe.name,
        config=config,
        parameters=None,
        utilization=None,
        form=replace(question.form, moments=moments),
        rows=train.micro_batch,
        rank=recipe.lora.rank if recipe.lora is not None else 0,
        nf4=recipe.lora is not None and recipe.lora.base == "nf4",
        modules=trained_modules(recipe, config),
        running=running_of(recipe.parallel),
        scored=recipe.stage in ("dpo", "grpo", "ppo"),
        sampling=sampling_of(recipe),
    )


def check_dtype(dtype: str | None, gpu: Gpu) -> None:
    """`UserError` for what a recipe's products cannot run in, or that GPU not multiply."""
    if dtype not in (None, "fp32", "bf16", "fp8"):
        raise bad_value("dtype", dtype, "fp32, bf16 or fp8 for a recipe")
    if dtype is not None:
        gpu.peak(dtype)


def layout_of_recipe(recipe: Recipe) -> Layout:
    """The degrees of a recipe's `parallel` section."""
    return Layout(**{name: getattr(recipe.parallel, name) for name in Layout().to_dict()})


def recipe_answer(
    recipe: Recipe, config: ModelConfig, gpu: Gpu, dtype: str | None = None
) -> dict[str, Any]:
    """What `llamaseek plan --recipe --json` prints of a recipe whose layout can run. Bytes are of
    the fullest rank.
    """
    if recipe.parallel.auto:
        raise bad_value("parallel", "auto", "degrees of the recipe's own; `auto` is for a run")
    question = question_of(recipe, config, gpu, dtype)
    planner, layout = Planner(question), layout_of_recipe(recipe)
    step, memory, count = planner.step(layout), planner.memory(layout), count_parameters(config)
    sampling, drawn = planner.sampling_seconds(layout), planner.drawing(layout)
    at_once = drawn.answers(question.sampling, layout) if drawn and question.sampling else None
    seconds = step.seconds + sampling
    peak = layout.gpus * gpu.peak(question.form.rate)
    return {
        "recipe": recipe.name,
        "gpu": gpu.name,
        "gpu_memory": round(gpu.memory),
        "dtype": question.form.name,
        "gpus": layout.gpus,
        "layout": layout.to_dict(),
        "micro_batches": planner.micro_batches(layout),
        "parameters": count.total,
        "activated_parameters": count.activated,
        "bytes_per_gpu": memory.to_dict() | {"total": round(memory.total)},
        "fits": memory.total <= gpu.memory,
        "micro_batch_seconds": vars(step.slot),
        "idle_seconds": step.bubble,
        "exposed_seconds": step.exposed,
        "optimizer_seconds": step.optimizer,
        "sampling_seconds": sampling,
        "answers_at_once": at_once,
        "step_seconds": seconds,
        "tokens_per_second": question.batch * question.context / seconds,
        "flops_per_token": planner.flops // (question.batch * question.context),
        "utilization": planner.flops / (seconds * peak),
    }
