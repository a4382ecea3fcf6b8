"""For one question: memory, layouts and speed of each, and how few GPUs are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from llamaseek.herd.configs import DeepseekV3Config, ModelConfig
from llamaseek.plan.activations import BLOCKED_LENGTH, Pass
from llamaseek.plan.cost import (
    Links,
    Speed,
    bubble,
    compute_seconds,
    link_seconds,
    serving_speed,
    training_speed,
)
from llamaseek.plan.formats import MASTER
from llamaseek.plan.layout import Layout
from llamaseek.plan.memory import Memory, Training, training_memory
from llamaseek.plan.question import Question
from llamaseek.plan.search import USABLE, best, counts, serving_layouts, training_layouts
from llamaseek.plan.serving import STEP_TOKENS, Serving, serving_memory
from llamaseek.plan.weights import linear_names

LORA_RANK = 16
CHUNK = {True: 2**21, False: 2**27}  # logits at a time, `models/loss.py`: on a CPU, on a GPU


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
        depth = 0
        if q.task == "pretrain" and isinstance(self.config, DeepseekV3Config):
            depth = self.config.num_nextn_predict_layers
        run = Pass(
            rows=self.rows(layout),
            length=ceil(q.context / layout.context),
            number=q.form.number,
            blocked=cpu and q.context <= BLOCKED_LENGTH,
            adapters=linear_names(self.config) if lora else None,
            rank=LORA_RANK if lora else 0,
        )
        return Training(
            run,
            stored=q.form.number if lora else MASTER,
            moments=q.form.moments or 8,
            checkpoint=q.checkpoint if checkpoint is None else checkpoint,
            chunk=CHUNK[cpu],
            depth=depth,
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
        training = self.training(layout)
        rows = self.micro_batches(layout)
        stages = {0, min(1, layout.pipeline - 1), layout.pipeline - 1}
        return max(
            (training_memory(self.config, training, layout, stage, rows) for stage in stages),
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
        """The layout of `gpus` that `runs` and fits, is fastest, and loses least to links and idle
        stages.
        """

        def seconds(layout: Layout) -> tuple[float, float]:
            return self.speed(layout).step_seconds, self._lost(layout)

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
        """How fast `layout` is at the stated utilisation."""
        q = self.question
        if not q.trains:
            serving = self.serving()
            return serving_speed(self.config, q.form, serving, layout, q.gpu, q.utilisation)
        return training_speed(self._compute(layout), self._links(layout), q.batch * q.context)

    def micro_batches(self, layout: Layout) -> int:
        """Forward and backward passes a step, on each rank."""
        return max(self.question.batch // (layout.replicas * self.rows(layout)), 1)

    def rows(self, layout: Layout) -> int:
        """Rows of a micro-batch."""
        share = max(self.question.batch // layout.replicas, 1)
        return min(self.question.rows or (share if layout.pipeline == 1 else 1), share)

    def _compute(self, layout: Layout) -> float:
        q = self.question
        rate = q.gpu.peak(q.form.rate) * q.utilisation
        return compute_seconds(self.config, q.task, q.batch, q.context, layout.gpus, rate)

    def _links(self, layout: Layout) -> Links:
        micro = self.micro_batches(layout)
        return link_seconds(self.config, self.training(layout), layout, self.question.gpu, micro)

    def _lost(self, layout: Layout) -> float:
        """What a layout adds to a step's products: waiting for links, and idle stages."""
        if not self.question.trains:
            return 0
        idle = bubble(layout, self.micro_batches(layout)) * self._compute(layout)
        return self._links(layout).exposed + idle
