"""For one question: memory, layouts and speed of each, and how few GPUs are enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import ceil

from llamaseek.herd import ModelConfig
from llamaseek.plan.activations import BLOCKED_LENGTH, TrainingPass
from llamaseek.plan.cost import Speed, rollout_seconds, serving_speed, training_speed
from llamaseek.plan.flops import training_flops
from llamaseek.plan.formats import MASTER
from llamaseek.plan.gpus import Gpu, rates_of
from llamaseek.plan.layout import Layout
from llamaseek.plan.memory import CHUNK_NUMBERS, Memory, Training, training_memory
from llamaseek.plan.question import SERVING_SHARE, Question
from llamaseek.plan.serving import (
    STEP_TOKENS,
    Drawing,
    Serving,
    drawing,
    serving_memory,
    with_rollouts,
)
from llamaseek.plan.step import Step, step_time
from llamaseek.plan.weights import linear_names
from llamaseek.plan.work import place_works

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
    heads = config.tensor_parallel_heads
    powers = (2**n for n in range(10))
    return [t for t in powers if t <= gpu.node and gpus % t == 0 and heads % t == 0]


def expert_degrees(config: ModelConfig, replicas: int) -> list[int]:
    """How many ranks a mixture's experts may be spread over."""
    if not config.num_experts:
        return [1]
    return [e for e in _divisors(replicas, 64) if config.num_experts % e == 0]


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


@dataclass(frozen=True)
class Planner:
    """A question about a model whose config is known."""

    question: Question

    @cached_property
    def config(self) -> ModelConfig:
        """The model's."""
        assert self.question.config is not None
        return self.question.config

    @cached_property
    def usable(self) -> float:
        """Bytes of one GPU that the plan may fill."""
        return USABLE * self.question.gpu.memory

    def training(self, layout: Layout, checkpoint: bool | None = None) -> Training:
        """What one rank does with a micro-batch."""
        q, cpu = self.question, self.question.gpu.name == "cpu"
        lora = q.task == "lora"
        run = TrainingPass(
            rows=self.rows(layout),
            length=ceil(q.context / layout.context),
            number=q.form.number,
            blocked=cpu and q.context <= BLOCKED_LENGTH,
            adapters=linear_names(self.config) if lora else None,
            rank=q.rank if lora else 0,
            fp8_dispatch=q.running.fp8_dispatch,
        )
        return Training(
            run,
            stored=q.form.number if lora else MASTER,
            moments=q.form.moments or 8,
            checkpoint=q.checkpoint if checkpoint is None else checkpoint,
            chunk=CHUNK_NUMBERS["cpu" if cpu else "cuda"],
            depth=q.modules,
            selective=q.selective and checkpoint is None,
            nf4=lora and q.nf4,
            scored=q.scored,
        )

    def serving(self) -> Serving:
        """Prompts in pieces of the engine's budget, context full."""
        q = self.question
        step = max(min(q.context, STEP_TOKENS // q.batch), 1)
        return Serving(q.batch, q.context, step, scores=q.gpu.name == "cpu")

    def memory(self, layout: Layout) -> Memory:
        """Bytes on the fullest rank."""
        if not self.question.trains:
            return serving_memory(self.config, self.question.form, self.serving(), layout)
        found, drawn = self._fullest(layout), self.drawing(layout)
        return found if drawn is None else with_rollouts(found, drawn, layout)

    def drawing(self, layout: Layout) -> Drawing | None:
        """What drawing a rollout's answers takes; None where none are."""
        q, held = self.question, self._fullest(layout).weights
        if q.sampling is None:
            return None
        return drawing(held, self.config, self.training(layout), q.sampling, layout, q.gpu)

    def _fullest(self, layout: Layout) -> Memory:
        """A training step of the fullest rank, without what it samples."""
        q, training = self.question, self.training(layout)
        rows = self.micro_batches(layout)
        stages = {0, min(1, layout.pipeline - 1), layout.pipeline - 1}
        return max(
            (
                training_memory(self.config, training, layout, stage, rows, q.running)
                for stage in stages
            ),
            key=lambda m: m.total,
        )

    def layouts(self, gpus: int) -> list[Layout]:
        """All layouts of that many GPUs."""
        q = self.question
        if q.trains:
            return list(training_layouts(self.config, q.gpu, gpus, q.batch, q.context))
        return list(serving_layouts(self.config, q.gpu, gpus, q.batch))

    def fits(self, layout: Layout) -> bool:
        """Whether the fullest rank stays within the usable memory."""
        return self.memory(layout).total <= self.usable

    def fastest(
        self, gpus: int, runs: Callable[[Layout], bool] = lambda layout: True
    ) -> Layout | None:
        """The layout of `gpus` that `runs`, fits and is fastest."""

        def seconds(layout: Layout) -> tuple[float, ...]:
            step = self.step(layout).seconds if self.question.trains else 0.0
            return (step or self.speed(layout).step_seconds,)

        layouts = (layout for layout in self.layouts(gpus) if runs(layout))
        return best(layouts, self.fits, seconds)

    def smallest(self) -> int | None:
        """The fewest GPUs that some layout fits on."""
        alone = self.memory(Layout())
        # Nothing is split more evenly than by the number of GPUs.
        least = ceil((alone.weights + alone.gradients + alone.optimizer) / self.usable)
        for gpus in counts(self.question.gpu, least):
            if any(self.fits(layout) for layout in self.layouts(gpus)):
                return gpus
        return None

    def speed(self, layout: Layout) -> Speed:
        """How fast `layout` is at the stated utilization."""
        q = self.question
        if not q.trains:
            serving = self.serving()
            share = q.utilization or SERVING_SHARE
            return serving_speed(self.config, q.form, serving, layout, q.gpu, share)
        peak = layout.gpus * q.gpu.peak(q.form.rate)
        return training_speed(
            self.step(layout), self.flops / peak, q.batch * q.context, q.utilization
        )

    def micro_batches(self, layout: Layout) -> int:
        """Forward and backward passes a step, on each rank."""
        return max(self.question.batch // (layout.replicas * self.rows(layout)), 1)

    def rows(self, layout: Layout) -> int:
        """Rows of a micro-batch."""
        share = max(self.question.batch // layout.replicas, 1)
        return min(self.question.rows or (share if layout.pipeline == 1 else 1), share)

    def step(self, layout: Layout) -> Step:
        """A training step of `layout`, at measured rates."""
        q, training = self.question, self.training(layout)
        works = place_works(self.config, training, layout, q.running)
        rates = rates_of(q.gpu, q.form.rate)
        return step_time(works, layout, q.running, self.micro_batches(layout), rates)

    def sampling_seconds(self, layout: Layout) -> float:
        """What a training step takes for answers beside `step`: its share of drawing them, and of
        the passes that score them, forwards alone.
        """
        q = self.question
        if q.sampling is None:
            return 0.0
        training, share = self.training(layout), q.utilization or SERVING_SHARE
        drawing = rollout_seconds(self.config, training, q.sampling, layout, q.gpu, share)
        micro_batches = self.micro_batches(layout)
        forward = micro_batches * self.step(layout).slot.seconds / 3
        return drawing / q.sampling.steps + q.sampling.passes * forward

    @property
    def flops(self) -> int:
        """FLOPs of a training step."""
        q = self.question
        each = training_flops(self.config, q.context, q.modules, q.task == "lora")
        return q.batch * q.context * each
