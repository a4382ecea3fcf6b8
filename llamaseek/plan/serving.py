"""Bytes on one GPU while it answers: weights, cache, and the fullest moment of one layer; and what
answers that are sampled in training add to it: they are drawn by an engine in the same process,
whose cache stays between rollouts, and scored by a reference.

Heads H, key-value heads K, tokens of a step N, cached tokens of a row S; c bytes of a number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from llamaseek.herd import ModelConfig
from llamaseek.plan.activations import FLOAT
from llamaseek.plan.formats import MASTER, Format
from llamaseek.plan.gpus import Gpu
from llamaseek.plan.layout import Layout, stage_layers
from llamaseek.plan.memory import Memory, Training
from llamaseek.plan.weights import cache_numbers, kind, layer_size, table_size

if TYPE_CHECKING:
    from llamaseek.recipe.schema import Recipe

ROWS = 256  # answers under way at once
DEFAULT_CACHE = 1 << 30  # bytes of an engine's cache where there is no GPU
STEP_TOKENS = 2048  # of prompts, in one step of the engine: longer ones are read in pieces


@dataclass(frozen=True)
class Serving:
    """`rows` conversations of `length` tokens, each step reading `step` tokens of each row.

    `scores` says that attention makes its matrix of scores, as a plain cache does
    (`tests/models/contiguous.py`), instead of running a fused kernel.
    """

    rows: int
    length: int
    step: int
    scores: bool = False


def serving_memory(
    config: ModelConfig, form: Format, serving: Serving, layout: Layout = Layout()
) -> Memory:
    """One rank of the fullest stage; rows are split over `data`, the layers over `pipeline`."""
    stages = {0, min(1, layout.pipeline - 1), layout.pipeline - 1}
    return max(
        (_stage(config, form, serving, layout, stage) for stage in stages), key=lambda m: m.total
    )


def weight_bytes(config: ModelConfig, form: Format) -> float:
    """Bytes of the whole model's weights, multi-token modules apart."""
    return _stage(config, form, Serving(0, 0, 0), Layout(), 0).weights


def _stage(
    config: ModelConfig, form: Format, serving: Serving, layout: Layout, stage: int
) -> Memory:
    layers = stage_layers(config.num_hidden_layers, layout.pipeline, stage)
    first, last = stage == 0, stage == layout.pipeline - 1
    tables = first + last - (config.tie_word_embeddings and first and last)
    weights = tables * table_size(config) * form.other / layout.tensor
    for like, group in groupby(kind(config, layer) for layer in layers):
        weights += len(list(group)) * _layer_bytes(config, form, layout, like)
    rows = -(-serving.rows // layout.data)
    cached = cache_numbers(config, layout.tensor) * len(layers)
    working = max(
        working_bytes(config, layer, serving, rows, form.number) for layer in {*map_kinds(config)}
    )
    logits = last * rows * config.vocab_size * FLOAT
    return Memory(
        weights=weights + last * config.hidden_size * form.other,
        cache=rows * serving.length * cached * form.number,
        working=max(working, logits) / layout.tensor,
    )


def _layer_bytes(config: ModelConfig, form: Format, layout: Layout, layer: int) -> float:
    size = layer_size(config, layer)
    plain = size.matrices * form.matrix + size.small * form.other
    return (plain + size.routed * form.matrix / layout.expert) / layout.tensor


def map_kinds(config: ModelConfig) -> set[int]:
    """One layer of each kind among the main ones."""
    return {kind(config, 0), kind(config, config.num_hidden_layers - 1)}


def working_bytes(
    config: ModelConfig, layer: int, serving: Serving, rows: int, number: int
) -> float:
    """The larger of attention's and the feed-forward's moment in `layer`; residual included."""
    width, heads = config.hidden_size, config.num_attention_heads
    share = heads // config.cache_heads
    if config.latents is not None:
        # The query, the query against the latent, the latent three times over.
        inner = heads * (config.query_head_width + config.cache_width) + 3 * config.cache_width
    else:
        inner = 2 * (heads + config.key_heads) * config.query_head_width
    tokens = rows * serving.step
    attention = number * tokens * (2 * width + inner)
    if serving.scores:
        # Scores, then in fp32 the masked ones and their softmax; masks of one byte.
        seen = tokens * serving.length
        attention += seen * ((number + 2 * FLOAT) * heads + share + 1)
    forward = number * tokens * (3 * width + _feed_forward(config, layer))
    return max(attention, forward)


def _feed_forward(config: ModelConfig, layer: int) -> int:
    """Numbers a token of the gated product, or of the experts' inner and outer ones."""
    if not config.is_moe_layer(layer):
        return 3 * config.intermediate_size
    expert = 3 * config.expert_width + config.hidden_size
    return config.experts_per_token * expert + 2 * config.hidden_size


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


@dataclass(frozen=True)
class Drawing:
    """Bytes of a rank that draws answers: weights with the copies beside them, the cache, and one
    cached token.
    """

    weights: float
    cache: float
    token: float

    def answers(self, sampling: Sampling, layout: Layout) -> int:
        """How many answers of full length the cache holds at once, of those there are."""
        held = self.cache // (self.token * sampling.length)
        return int(min(ROWS, sampling.answers // layout.replicas, held))


def drawing(
    held: float,
    config: ModelConfig,
    training: Training,
    sampling: Sampling,
    layout: Layout,
    gpu: Gpu,
) -> Drawing:
    """What drawing takes beside `held` bytes of weights: the reference, on a GPU in what products
    run in, and there also a copy of wider weights, which answers come from.
    """
    cpu, split = gpu.name == "cpu", layout.shard > 1
    number = MASTER if cpu else training.run.number
    narrow = layout.shard * held * number / training.stored
    copied = not cpu and not split and training.stored > number
    weights = held + narrow * (sampling.reference + copied)
    token = cache_numbers(config) * config.num_hidden_layers
    token *= training.stored if split else min(number, training.stored)
    wanted = min(wanted_tokens(sampling.length), ROWS * config.max_position_embeddings)
    # The engine is made before the first step, when there are no gradients and moments yet.
    room = DEFAULT_CACHE if cpu else (gpu.memory - weights) / 2
    return Drawing(weights, min(wanted * token, room), token)


def with_rollouts(memory: Memory, drawn: Drawing, layout: Layout) -> Memory:
    """A training step's memory, with the engine's cache and the copies of weights. Weights that are
    split are gathered for the answers instead, and the cache goes with them: then it is the fuller
    of the two moments.
    """
    if layout.shard == 1:
        return replace(memory, weights=drawn.weights, cache=drawn.cache)
    whole = drawn.weights + layout.shard * memory.weights
    rolling = Memory(weights=whole, optimizer=memory.optimizer, cache=drawn.cache)
    return max(replace(memory, weights=drawn.weights), rolling, key=lambda m: m.total)
