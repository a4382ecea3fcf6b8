"""Pipeline parallel: each rank holds some layers, and micro-batches go through them in turn.

Schedules and sending are torch.distributed.pipelining's. The first stage embeds; the last one
holds norm, head and multi-token modules, and computes the whole loss there, so that an objective
sees a model as it always does. B rows of a micro-batch, T tokens a rank holds, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from llamaseek.data.batch import Batch
from llamaseek.models import CausalLM, build_model
from llamaseek.models.documents import on_device
from llamaseek.models.drawn import copy_draws
from llamaseek.models.layers import widen
from llamaseek.parallel.mesh import Mesh
from llamaseek.plan.layout import stage_layers
from llamaseek.recipe.parallel import ParallelRecipe

LossOf = Callable[[CausalLM, Batch], Tensor]
SCHEDULES: dict[str, Any] = {
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
}


class Elsewhere(nn.Module):
    """In place of a layer that another stage holds."""

    def forward(self, x: Tensor, *rest: Any) -> tuple[Tensor, None, None]:
        """x as it is; no expert load, no balance loss."""
        return x, None, None


class Received(nn.Module):
    """In place of the embedding in later stages: gives what the stage before has sent.

    Further calls, of multi-token modules, look tokens up in a second copy of the table.
    """

    def __init__(self, embed_tokens: nn.Module | None) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.value: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) → (B, T, D)."""
        if self.value is None:
            assert self.embed_tokens is not None
            out: Tensor = self.embed_tokens(tokens)
            return out
        value, self.value = self.value, None
        return value


class PipelinePart(nn.Module):
    """A part of the model as a schedule runs it: hidden states in and out, at the end a loss.

    Products run in `dtype` in every stage, and hidden states are handed on in it; those of the
    first stage are as wide as its weights under autocast.
    """

    def __init__(self, model: CausalLM, index: int, stages: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.model = model
        self.index = index
        self.first, self.last = index == 0, index == stages - 1
        self.micro_batches: Iterator[Batch] = iter(())
        self.loss: LossOf | None = None

    def forward(self, *received: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The next micro-batch (every schedule takes them in order). Received: hidden (B, T, D)
        and, with experts, their balance loss so far (B), but for the first stage, whose rows'
        numbers are not needed. Gives the same for the next, or the loss (1).
        """
        micro = next(self.micro_batches)
        balance = received[1] if len(received) > 1 and not self.first else None
        handle = self.model.register_forward_hook(add_balance(balance))
        if not self.first:
            embedding = self.model.model.embed_tokens
            assert isinstance(embedding, Received)
            embedding.value = received[0]
        narrow = self.dtype == torch.bfloat16
        try:
            with torch.autocast(micro.tokens.device.type, dtype=self.dtype, enabled=narrow):
                return self._run(micro)
        finally:
            handle.remove()

    def _run(self, micro: Batch) -> Tensor | tuple[Tensor, ...]:
        assert self.loss is not None
        if self.last:
            return self.loss(self.model, micro)[None]
        hidden = self.model(micro.tokens, micro.positions)
        if not routes(self.model):
            return hidden.to(self.dtype)
        balance = self.model.balance_loss
        balance = hidden.new_zeros(len(hidden)) if balance is None else balance
        return hidden.to(self.dtype), widen(balance)


def add_balance(balance: Tensor | None) -> Callable[..., None]:
    """A forward hook that adds the balance loss of earlier stages to the model's own."""

    def hook(model: CausalLM, args: Any, out: Any) -> None:
        if balance is not None:
            own = model.balance_loss
            model.balance_loss = balance if own is None else own + balance

    return hook


def routes(model: CausalLM) -> bool:
    """Whether any layer of the whole model is a mixture of experts."""
    return model.config.num_experts > 0


def cut(model: CausalLM, plan: ParallelRecipe, mesh: Mesh) -> list[CausalLM]:
    """The parts of `model` that this rank's stages hold, in order; others' layers are let go."""
    if plan.pipeline == 1:
        return [model]
    indices = range(mesh.rank("pipeline"), plan.stages, plan.pipeline)
    total = len(model.model.layers)
    return [
        part(model, index, plan.stages, stage_layers(total, plan.stages, index, plan.last_layers))
        for index in indices
    ]


def part(model: CausalLM, index: int, stages: int, layers: range) -> CausalLM:
    """Stage `index` of a model: `layers` of it, and what the first and the last stage hold."""
    with torch.device("meta"):
        made = build_model(model.config)
    for layer in range(len(made.model.layers)):
        made.model.layers[layer] = model.model.layers[layer] if layer in layers else Elsewhere()
    made.model.rotary = deepcopy(model.model.rotary)
    first, last = index == 0, index == stages - 1
    end = "score" if model.config.is_reward_model else "lm_head"
    embedding, head = model.model.embed_tokens, model.get_submodule(end)
    made.model.embed_tokens = embedding
    setattr(made, end, nn.Identity())
    made.model.norm = model.model.norm if last else nn.Identity()  # type: ignore[assignment]
    if not first:
        ahead = len(model.model.layers) > model.config.num_hidden_layers
        copies = last and (ahead or model.tied)
        table = deepcopy(embedding) if copies else None
        if table is not None:
            copy_draws(embedding, table)
        made.model.embed_tokens = Received(table if ahead else None)  # type: ignore[assignment]
        if copies and model.tied:
            head = deepcopy(head)
            head.weight = table.weight  # type: ignore[union-attr]
    if last:
        setattr(made, end, head)
    return made


class Pipeline:
    """Runs a step's micro-batches through the stages of all ranks."""

    def __init__(
        self, stages: list[PipelinePart], mesh: Mesh, plan: ParallelRecipe, device: torch.device
    ) -> None:
        self.stages, self.mesh, self.plan, self.device = stages, mesh, plan, device
        self.schedules: dict[tuple[int, ...], Any] = {}

    def run(
        self, batch: Batch, rows: int, loss: LossOf, backward: bool, dtype: torch.dtype
    ) -> None:
        """Forward, and with `backward` backward, of every micro-batch of `rows` rows."""
        for stage in self.stages:
            stage.micro_batches = (on_device(micro, self.device) for micro in batch.split(rows))
            stage.loss = loss
        count, time = batch.tokens.shape
        key = (count // rows, rows, time, int(backward))
        if key not in self.schedules:
            self.schedules[key] = self._schedule(count // rows, rows, time, dtype)
        schedule = self.schedules[key]
        places = torch.arange(count, device=self.device)
        first = (places,) if self.stages[0].first else ()
        target = places if self.stages[-1].last else None
        run = schedule.step if backward else schedule.eval
        run(*first, target=target)

    def _schedule(self, micro_batches: int, rows: int, time: int, dtype: torch.dtype) -> Any:
        stages = [self._stage(stage, rows, time, dtype) for stage in self.stages]
        kind = SCHEDULES[self.plan.schedule]
        given = stages[0] if kind is Schedule1F1B else stages
        return kind(
            given, micro_batches, loss_fn=lambda loss, target: loss.sum(), scale_grads=False
        )

    def _stage(
        self, stage: PipelinePart, rows: int, time: int, dtype: torch.dtype
    ) -> PipelineStage:
        """Shapes are known, so that nothing is run to find them."""
        width = stage.model.config.hidden_size
        share = time // (self.plan.context * self.plan.tensor)
        with torch.device("meta"):
            hidden = torch.empty(rows, share, width, dtype=dtype, requires_grad=True)
            wide = torch.promote_types(dtype, torch.float32)
            balance = torch.empty(rows, dtype=wide, requires_grad=True)
            loss = torch.empty(1, dtype=wide, requires_grad=True)
            index = torch.empty(rows, dtype=torch.int64)
        between = (hidden, balance) if routes(stage.model) else (hidden,)
        return PipelineStage(
            stage,
            stage.index,
            self.plan.stages,
            self.device,
            input_args=(index,) if stage.first else between,
            output_args=(loss,) if stage.last else between,
            group=self.mesh.pipeline,
        )
