"""How long a step takes, and what bounds it.

A training step's time is `plan/step.py`'s, unless a utilization is given: a published one has the
cost of links, of idle pipeline stages and of recomputation in it already. A decoding step takes
what its FLOPs take at a stated share of the peak, what it must read at the same share of the
memory's bandwidth, or what its links must carry at their measured rate, whichever is longest.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.herd import ModelConfig
from llamaseek.plan.flops import attention_flops, matrix_flops
from llamaseek.plan.formats import FORMATS, MASTER, Format
from llamaseek.plan.gpus import Gpu, rates_of
from llamaseek.plan.layout import Layout
from llamaseek.plan.memory import Training
from llamaseek.plan.serving import Sampling, Serving
from llamaseek.plan.step import Step, others
from llamaseek.plan.weights import (
    cache_numbers,
    kind,
    layer_size,
    table_size,
)

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Speed:
    """Seconds of one step and what bounds it; tokens a second of all GPUs together."""

    step_seconds: float
    tokens_per_second: float
    bound: str
    prefill_tokens_per_second: float | None = None
    utilization: float | None = None  # of the peak, in training


def training_speed(step: Step, at_peak: float, tokens: int, utilization: float | None) -> Speed:
    """One optimizer step of `tokens`, whose FLOPs take `at_peak` seconds at the GPUs' peak. A given
    `utilization` stands for all that a step loses, and takes the formula's place.
    """
    slot, seconds = step.slot, step.seconds
    parts = {
        "compute": slot.products + slot.attention,
        "memory bandwidth": slot.memory,
        "links": slot.sends,
    }
    bound = max(parts, key=lambda name: parts[name])
    if utilization is not None:
        seconds, bound = at_peak / utilization, "compute"
    return Speed(seconds, tokens / seconds, bound, utilization=at_peak / seconds)


def serving_speed(
    config: ModelConfig,
    form: Format,
    serving: Serving,
    layout: Layout,
    gpu: Gpu,
    utilization: float,
) -> Speed:
    """One new token for every row, its context full; and how fast prompts are read.

    A token passes the stages of a pipeline one after the other.
    """
    rows = -(-serving.rows // layout.data)
    rate = gpu.peak(form.rate) * utilization
    matrices, attention = matrix_flops(config), attention_flops(config, serving.length)
    at_once = layout.tensor * layout.data
    read = read_bytes(config, form, serving.rows, layout)
    cached = cache_numbers(config, layout.tensor) * config.num_hidden_layers * form.number
    read += rows * serving.length * cached
    sent = 4 * others(layout.tensor) * rows * config.hidden_size * form.number
    bounds = {
        "compute": serving.rows * (matrices + attention) / (at_once * rate),
        "memory bandwidth": read / (gpu.bandwidth * utilization),
        "links": sent * config.num_hidden_layers / rates_of(gpu, form.rate).link,
    }
    slowest = max(bounds, key=lambda name: bounds[name])
    prefill = layout.gpus * rate / (matrices + attention / 2)  # half the keys on average
    return Speed(bounds[slowest], serving.rows / bounds[slowest], slowest, prefill)


def read_bytes(config: ModelConfig, form: Format, rows: int, layout: Layout) -> float:
    """Bytes of weights that a step of `rows` tokens reads on one rank a stage, all stages: of a
    mixture's experts those that some token chose, were choices independent.
    """
    hit = 1.0
    if config.num_experts:
        hit -= (1 - config.experts_per_token / config.num_experts) ** rows
    read: float = form.other * table_size(config)  # the head; an embedding is looked up
    for layer in range(config.num_hidden_layers):
        size = layer_size(config, kind(config, layer))
        plain = size.matrices * form.matrix + size.small * form.other
        read += plain + size.routed * hit * form.matrix / layout.expert
    return read / layout.tensor


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
    form = FORMATS["fp32" if training.run.number == MASTER else "bf16"]
    serving = Serving(sampling.answers, sampling.length, 1)
    speed = serving_speed(config, form, serving, layout, gpu, share)
    return sampling.tokens * speed.step_seconds
