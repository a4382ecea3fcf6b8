"""How long a step takes and what it loses to links.

A step takes what its FLOPs take at a stated share of the peak, or what its links must carry,
whichever is longer; in decoding also what it must read at the same share of the memory's
bandwidth. Links are a bound from bandwidth alone. A published utilisation has the cost of links,
of idle pipeline stages and of recomputation in it already.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.herd import DeepseekV3Config, ModelConfig
from llamaseek.plan.activations import is_mixture
from llamaseek.plan.flops import attention_flops, matrix_flops, task_flops
from llamaseek.plan.formats import GRADIENT, Format
from llamaseek.plan.gpus import Gpu
from llamaseek.plan.layout import Layout, stage_layers
from llamaseek.plan.memory import Training
from llamaseek.plan.serving import Serving
from llamaseek.plan.weights import (
    adapter_size,
    cache_numbers,
    kind,
    layer_size,
    table_size,
)

HOUR, DAY = 3600.0, 86400.0
LINK_SHARE = 0.7  # of a link's bandwidth that collectives reach; assumed


@dataclass(frozen=True)
class Speed:
    """Seconds of one step and what bounds it; tokens a second of all GPUs together."""

    step_seconds: float
    tokens_per_second: float
    bound: str
    prefill_tokens_per_second: float | None = None


@dataclass(frozen=True)
class Links:
    """Seconds a step that one GPU's links need, one direction: `exposed` where products wait for
    them (tensor, expert, pipeline), `hidden` where they run beside (sharding, averaging)."""

    exposed: float
    hidden: float

    @property
    def longest(self) -> float:
        """The step's lower bound: the two take different links, or the same at different times."""
        return max(self.exposed, self.hidden)


def training_speed(compute: float, links: Links, tokens: int) -> Speed:
    """One optimizer step of `tokens`, whose FLOPs take `compute` seconds."""
    seconds = max(compute, links.longest)
    return Speed(seconds, tokens / seconds, "links" if links.longest > compute else "compute")


def compute_seconds(
    config: ModelConfig, task: str, rows: int, context: int, gpus: int, rate: float
) -> float:
    """Seconds of a step's FLOPs on `gpus` that each make `rate` of them a second."""
    return rows * context * task_flops(config, task, context) / (gpus * rate)


def bubble(layout: Layout, micro_batches: int) -> float:
    """The share of a step that a pipeline's stage is idle (1F1B)."""
    return (layout.pipeline - 1) / (layout.pipeline - 1 + micro_batches)


def serving_speed(
    config: ModelConfig,
    form: Format,
    serving: Serving,
    layout: Layout,
    gpu: Gpu,
    utilisation: float,
) -> Speed:
    """One new token for every row, its context full; and how fast prompts are read.

    A token passes the stages of a pipeline one after the other.
    """
    rows = -(-serving.rows // layout.data)
    rate = gpu.peak(form.rate) * utilisation
    matrices, attention = matrix_flops(config), attention_flops(config, serving.length)
    at_once = layout.tensor * layout.data
    read = read_bytes(config, form, serving.rows, layout)
    cached = cache_numbers(config, layout.tensor) * config.num_hidden_layers * form.number
    read += rows * serving.length * cached
    sent = 4 * _others(layout.tensor) * rows * config.hidden_size * form.number
    bounds = {
        "compute": serving.rows * (matrices + attention) / (at_once * rate),
        "memory bandwidth": read / (gpu.bandwidth * utilisation),
        "links": sent * config.num_hidden_layers / (gpu.link * LINK_SHARE),
    }
    slowest = max(bounds, key=lambda name: bounds[name])
    prefill = layout.gpus * rate / (matrices + attention / 2)  # half the keys on average
    return Speed(bounds[slowest], serving.rows / bounds[slowest], slowest, prefill)


def read_bytes(config: ModelConfig, form: Format, rows: int, layout: Layout) -> float:
    """Bytes of weights that a step of `rows` tokens reads on one rank a stage, all stages: of a
    mixture's experts those that some token chose, were choices independent.
    """
    hit = 1.0
    if isinstance(config, DeepseekV3Config):
        hit -= (1 - config.num_experts_per_tok / config.n_routed_experts) ** rows
    read: float = form.other * table_size(config)  # the head; an embedding is looked up
    for layer in range(config.num_hidden_layers):
        size = layer_size(config, kind(config, layer))
        plain = size.matrices * form.matrix + size.small * form.other
        read += plain + size.routed * hit * form.matrix / layout.expert
    return read / layout.tensor


def link_seconds(
    config: ModelConfig, training: Training, layout: Layout, gpu: Gpu, micro_batches: int
) -> Links:
    """What one rank of the fullest kind of stage must send in a step."""
    stage = min(1, layout.pipeline - 1)
    layers = stage_layers(config.num_hidden_layers + training.depth, layout.pipeline, stage)
    hidden = training.run.number * config.hidden_size * training.run.tokens
    inside = layout.tensor * layout.context
    # Sequence parallelism gathers and scatters twice a layer, and again in each backward half.
    tensor = 8 * _others(layout.tensor) * hidden * len(layers)
    # Keys and values go to the other parts of the row, and their gradients come back.
    context = 3 * _others(layout.context) * layout.context * training.run.tokens
    context *= training.run.number * cache_numbers(config, layout.tensor) * len(layers)
    mixtures = sum(is_mixture(config, layer) for layer in layers)
    routed = 4 * _others(layout.expert) * _copies(config, layout, gpu) * mixtures
    routed *= hidden / layout.tensor
    passed = 2 * hidden / layout.tensor * (layout.pipeline > 1)
    exposed = (
        tensor / _reach(gpu, layout.tensor)
        + context / _reach(gpu, inside)
        + routed / _reach(gpu, inside * layout.expert)
        + passed / _reach(gpu, layout.gpus)
    )
    beside = _sharded_bytes(config, training, layout, layers, micro_batches)
    return Links(exposed * micro_batches, beside / _reach(gpu, inside * layout.replicas))


def _sharded_bytes(
    config: ModelConfig, training: Training, layout: Layout, layers: range, micro_batches: int
) -> float:
    """Bytes a step of gathering weights, and of scattering or averaging gradients."""
    run = training.run
    weights, trained = 0.0, 0.0
    for layer in (kind(config, layer) for layer in layers):
        size = layer_size(config, layer)
        weights += (size.plain + size.routed / layout.expert) / layout.tensor
        if run.adapters is not None:
            trained += adapter_size(config, layer, run.adapters, run.rank) / layout.tensor
    trained = weights if run.adapters is None else trained
    averaged = 2 * _others(layout.data) * GRADIENT * trained / layout.shard
    # A pipeline keeps the weights for the step; else each micro-batch gathers them twice.
    once = layout.pipeline > 1
    gathered = run.number * (weights * (1 if once else 2) + trained)
    return averaged + _others(layout.shard) * gathered * (1 if once else micro_batches)


def _copies(config: ModelConfig, layout: Layout, gpu: Gpu) -> int:
    """Experts a token is sent to; across nodes once a node, of which routing allows a few."""
    if not isinstance(config, DeepseekV3Config):
        return 0
    chosen = config.num_experts_per_tok
    return min(chosen, config.topk_group) if layout.expert > gpu.node else chosen


def _others(ranks: int) -> float:
    """The share of a collective that lies on other ranks."""
    return (ranks - 1) / ranks


def _reach(gpu: Gpu, ranks: int) -> float:
    """Bytes a second between that many neighbours: the link inside a node, else the network."""
    return LINK_SHARE * (gpu.link if ranks <= gpu.node else gpu.network)
