"""Answers that are sampled in training: the cache they are drawn with, the reference, the time.

A rollout's answers are drawn by the engine in the training process, with the weights in training.
Its cache stays between rollouts, beside gradients, moments and activations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llamaseek.herd import ModelConfig
from llamaseek.plan.cost import serving_speed
from llamaseek.plan.formats import FORMATS, MASTER
from llamaseek.plan.gpus import Gpu
from llamaseek.plan.layout import Layout
from llamaseek.plan.memory import Memory, Training
from llamaseek.plan.serving import DEFAULT_CACHE, Serving
from llamaseek.plan.weights import cache_numbers

if TYPE_CHECKING:
    from llamaseek.recipe.schema import Recipe

ROWS = 256  # answers under way at once


def wanted_tokens(longest: int) -> int:
    """Tokens of cache for `ROWS` answers that end at `longest`, and as many for prompts that come
    again.
    """
    return 2 * ROWS * longest


@dataclass(frozen=True)
class Sampling:
    """What a recipe samples: `answers` of at most `tokens` tokens a rollout, in rows of at most
    `length`, that `steps` steps train on. `passes` forwards without gradients score each answer,
    one of them by a copy of the model where `reference` says so.
    """

    answers: int
    tokens: int
    length: int
    steps: int
    passes: int
    reference: bool


def sampling_of(recipe: Recipe) -> Sampling | None:
    """What the stages of rollouts sample; None for the others."""
    if recipe.stage not in ("grpo", "ppo"):
        return None
    rollout = recipe.rollout
    steps = rollout.epochs * rollout.minibatches
    referred = recipe.stage == "ppo" or recipe.grpo.beta > 0
    own = recipe.stage == "ppo" or steps > 1  # the policy's own, before it changes
    return Sampling(
        answers=recipe.train.batch * rollout.minibatches,
        tokens=rollout.max_tokens,
        length=recipe.data.length,
        steps=steps,
        passes=referred + own,
        reference=referred and recipe.lora is None,
    )


def with_rollouts(
    memory: Memory,
    config: ModelConfig,
    training: Training,
    sampling: Sampling,
    layout: Layout,
    gpu: Gpu,
) -> Memory:
    """A training step's memory, with the engine's cache and the reference, which a GPU keeps in
    what products run in. Where weights are split they are gathered for the answers, and the cache
    goes with them: then it is the fuller of the two moments.
    """
    number = MASTER if gpu.name == "cpu" else training.run.number
    whole = layout.shard * memory.weights
    weights = memory.weights + sampling.reference * whole * number / training.stored
    token = cache_numbers(config) * config.num_hidden_layers * training.stored
    wanted = min(wanted_tokens(sampling.length), ROWS * config.max_position_embeddings)
    # The engine is made before the first step, when there are no gradients and moments yet.
    room = DEFAULT_CACHE if gpu.name == "cpu" else (gpu.memory - weights) / 2
    cache = min(wanted * token, room)
    if layout.shard == 1:
        return replace(memory, weights=weights, cache=cache)
    drawing = Memory(weights=weights + whole, optimizer=memory.optimizer, cache=cache)
    return max(replace(memory, weights=weights), drawing, key=lambda m: m.total)


def rollout_seconds(
    config: ModelConfig,
    training: Training,
    sampling: Sampling,
    layout: Layout,
    gpu: Gpu,
    share: float,
) -> float:
    """Seconds of drawing the answers of one rollout, a token of every answer at a time, at `share`
    of the peak.
    """
    form = FORMATS["fp32" if training.stored == MASTER else "bf16"]
    serving = Serving(sampling.answers, sampling.length, 1)
    speed = serving_speed(config, form, serving, layout, gpu, share)
    return sampling.tokens * speed.step_seconds
