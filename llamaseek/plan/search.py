"""Which layouts a number of GPUs allows, which of them fit, and how few GPUs are enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from llamaseek.herd.configs import DeepseekV3Config, Llama3Config, ModelConfig
from llamaseek.plan.gpus import Gpu
from llamaseek.plan.layout import Layout

USABLE = 0.9  # of a GPU's memory: the rest is the driver's, the allocator's and the collectives'
LONG = 32768  # tokens a row from which rows are split over GPUs
MOST_STAGES = 16  # both published runs had 16


def training_layouts(
    config: ModelConfig, gpu: Gpu, gpus: int, batch: int, context: int
) -> Iterator[Layout]:
    """Layouts of exactly `gpus`: each rank gets whole rows, each pipeline enough to fill it."""
    for tensor in tensor_degrees(config, gpu, gpus):
        for pipeline in _divisors(gpus // tensor, min(config.num_hidden_layers, MOST_STAGES)):
            rest = gpus // (tensor * pipeline)
            for long in _divisors(rest, 16 if context >= LONG else 1):
                replicas = rest // long
                if batch % replicas or batch // replicas < pipeline:
                    continue
                for data, shard in _sharding(replicas, gpu):
                    for expert in expert_degrees(config, replicas):
                        yield Layout(data, shard, tensor, pipeline, long, expert)


def serving_layouts(config: ModelConfig, gpu: Gpu, gpus: int, rows: int) -> Iterator[Layout]:
    """Layouts of exactly `gpus`; `data` splits the rows, and a mixture's experts with them."""
    for tensor in tensor_degrees(config, gpu, gpus):
        for pipeline in _divisors(gpus // tensor, min(config.num_hidden_layers, MOST_STAGES)):
            data = gpus // (tensor * pipeline)
            if data <= rows:
                for expert in expert_degrees(config, data):
                    yield Layout(data, 1, tensor, pipeline, 1, expert)


def tensor_degrees(config: ModelConfig, gpu: Gpu, gpus: int) -> list[int]:
    """Powers of two inside a node that divide all heads."""
    heads = config.num_attention_heads
    if isinstance(config, Llama3Config):
        heads = config.num_key_value_heads
    powers = (2**n for n in range(10))
    return [t for t in powers if t <= gpu.node and gpus % t == 0 and heads % t == 0]


def expert_degrees(config: ModelConfig, replicas: int) -> list[int]:
    """How many ranks a mixture's experts may be spread over."""
    if not isinstance(config, DeepseekV3Config):
        return [1]
    return [e for e in _divisors(replicas, 64) if config.n_routed_experts % e == 0]


def counts(gpu: Gpu, least: int) -> Iterator[int]:
    """Numbers of GPUs that are bought: a part of a node, nodes, and ever more of them at once."""
    parts = [n for n in (1, 2, 4) if n < gpu.node] if gpu.node > 1 else [1]
    node = gpu.node
    nodes = chain(
        range(node, 64 * node, node),
        range(64 * node, 512 * node, 8 * node),
        range(512 * node, 8193 * node, 64 * node),
    )
    whole: Iterable[int] = nodes if gpu.node > 1 else []
    return (n for n in chain(parts, whole) if n >= least)


def best(
    layouts: Iterable[Layout],
    fits: Callable[[Layout], bool],
    seconds: Callable[[Layout], tuple[float, ...]],
) -> Layout | None:
    """The fastest layout that fits; of equal ones the simplest."""
    fitting = (layout for layout in layouts if fits(layout))
    return min(fitting, key=lambda x: (*seconds(x), *_complexity(x)), default=None)


def _complexity(layout: Layout) -> tuple[int, ...]:
    return (
        layout.pipeline,
        layout.context,
        layout.tensor,
        layout.expert,
        layout.shard,
    )


def _sharding(replicas: int, gpu: Gpu) -> list[tuple[int, int]]:
    """Copies, one sharded model, or a sharded model a node."""
    found = {(replicas, 1), (1, replicas)}
    if replicas % gpu.node == 0:
        found.add((replicas // gpu.node, gpu.node))
    return sorted(found)


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, min(number, most) + 1) if number % d == 0]
