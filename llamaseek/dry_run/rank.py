"""A rank of any layout, built and run once in this process, without the memory it would need.

The real model is cut by the real `parallelize` under torch's fake process group, its weights are
fake tensors, and one micro-batch goes forward and backward. What differs from a run: rows are one
document, every expert gets as many tokens, and the first rank of each pipeline place stands for
all ranks there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from llamaseek.data.batch import Batch
from llamaseek.dry_run.held import (
    HeldTensor,
    averaged,
    first_layer,
    group_names,
    most_stepped,
    whole_weights,
)
from llamaseek.dry_run.trace import Movement, TracedWork, counted
from llamaseek.herd import ModelConfig
from llamaseek.models import CausalLM, build_model
from llamaseek.models.head import Softmax
from llamaseek.models.loss import counted_cross_entropy_sum, softmax_and_gradient
from llamaseek.models.moe import add_rows, run_experts, take_rows
from llamaseek.models.recompute import recompute
from llamaseek.parallel.apply import Parallel, parallelize
from llamaseek.parallel.collectives import exchange
from llamaseek.parallel.context import SlicedRotary
from llamaseek.parallel.expert import SplitExperts
from llamaseek.parallel.layers import local
from llamaseek.parallel.mesh import Mesh
from llamaseek.parallel.pipeline import PipelinePart, routes
from llamaseek.parallel.ranks import layout_of
from llamaseek.parallel.weights import weights_of
from llamaseek.plan.layout import Layout, running_of, stage_layers
from llamaseek.recipe.parallel import ParallelRecipe
from llamaseek.recipe.schema import Recomputed


@dataclass(frozen=True)
class Setting:
    """What is trained how: rows of `length` tokens, `rows` of them a micro-batch, so many
    micro-batches a step on every rank."""

    config: ModelConfig
    plan: ParallelRecipe
    length: int
    rows: int
    micro_batches: int
    checkpoint: Recomputed = "none"
    depth: int = 0  # multi-token modules trained
    compile: bool = False
    moment: int = 4  # bytes of each of AdamW's two moments

    @property
    def layout(self) -> Layout:
        """The degrees alone."""
        return layout_of(self.plan)


@dataclass
class Part:
    """One stage of a rank: its layers, and the work of a micro-batch forward and backward."""

    layers: list[int]
    forward: TracedWork
    backward: TracedWork
    kept: int  # bytes of activations between forward and backward
    fullest: int  # at the most, of one micro-batch, with what is kept


@dataclass
class RankReport:
    """One rank. Bytes of its state at rest, of what a step adds, and its parts' work."""

    rank: int
    place: int  # along the pipeline
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    gathered: int  # weights whole in bf16, and their gradients before they are scattered
    averaged: int  # bytes sent after a step's backward passes: gradients, and what ZeRO-1 stepped
    in_flight: int  # forwards of parts that wait for their backward at once
    stride: int = 1  # micro-batches that a part takes in a row before the next one's turn
    micro_batches: int = 1
    parts: list[Part] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)  # process group → the mesh's name
    tensors: list[HeldTensor] = field(default_factory=list)  # of the rank's first layer

    @property
    def activations(self) -> int:
        """The fullest moment of one micro-batch, and the forwards that wait beside it."""
        return fullest_moment(self.parts, self.stride, self.micro_batches, self.in_flight)

    @property
    def total(self) -> int:
        """The fullest moment of a step."""
        state = self.weights + self.gradients + self.optimizer
        return state + self.gathered + self.activations


def fullest_moment(parts: list[Part], stride: int, micro_batches: int, most: int) -> int:
    """Bytes of activations at the most: parts take `stride` micro-batches in turn, forward in
    order and backward from the last, and `most` forwards wait for their backward at once.
    """
    steps, count = micro_batches * len(parts), len(parts)
    waiting = fullest = 0
    for step in range(steps + most - 1):
        if step < steps:
            waiting += parts[step // stride % count].kept
        if step >= most - 1:
            back = parts[count - 1 - (step - most + 1) // stride % count]
            waiting -= back.kept
            fullest = max(fullest, waiting + back.fullest)
    return fullest


def kinds(setting: Setting) -> dict[int, list[int]]:
    """A rank of every kind, and the pipeline places that hold the same as its own: as many layers
    of each sort, and embedding or head or neither.
    """
    layout, stages = setting.layout, setting.plan.stages
    config = setting.config
    each = layout.gpus // layout.pipeline
    found: dict[tuple[object, ...], list[int]] = {}
    for place in range(layout.pipeline):
        held = []
        for stage in range(place, stages, layout.pipeline):
            layers = stage_layers(config.layer_count, stages, stage, setting.plan.last_layers)
            mixtures = sum(config.is_moe_layer(layer) for layer in layers)
            held.append((len(layers), mixtures, stage == 0, stage == stages - 1))
        found.setdefault(tuple(held), []).append(place)
    return {places[0] * each: places for places in found.values()}


def dry_run(setting: Setting, rank: int) -> RankReport:
    """Build and run one rank of the setting's layout."""
    with fake_ranks(rank, setting.layout.gpus):
        mesh = Mesh(setting.layout, "cpu")
        with torch.device("meta"):
            model = build_model(setting.config)
        parallel = parallelize(model, mesh, setting.plan, torch.bfloat16)
        for part in parallel.parts:
            prepare(part.train())
            recompute(part.model.layers, setting.checkpoint)
        with FakeTensorMode(allow_non_fake_inputs=True), whole_tensors_unseen():
            return run(setting, rank, mesh, parallel)


@contextmanager
def fake_ranks(rank: int, ranks: int) -> Iterator[None]:
    """This process as one of `ranks`, whose collectives return at once."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def whole_tensors_unseen() -> Iterator[None]:
    """DTensor finds an operation's shape by running it on fake tensors of the whole's size, which
    no rank holds: nothing that counts may see that.
    """
    name = "_propagate_tensor_meta_non_cached"
    found = getattr(ShardingPropagator, name)

    def unseen(*args: Any) -> Any:
        with _disable_current_modes():
            return found(*args)

    with patch.object(ShardingPropagator, name, unseen):
        yield


class BalancedExperts(SplitExperts):
    """The experts of a rank when every rank is sent as many rows: counts need no numbers."""

    def _elsewhere(
        self,
        x: Tensor,
        chosen: Tensor,
        gates: Tensor,
        load: Tensor,
        weights: tuple[Tensor, Tensor],
        group: dist.ProcessGroup,
    ) -> Tensor:
        ranks, experts = group.size(), weights[0].shape[0]
        places = torch.arange(chosen.numel()).view_as(chosen)
        tokens, even = places.flatten() // chosen.shape[1], [chosen.numel() // ranks] * ranks
        rows = self.dispatch(take_rows(x, tokens, places), even, even, group)
        shares = exchange(gates.flatten()[places.flatten()], even, even, group)
        ids = torch.arange(len(rows)) % experts
        load = torch.full((experts,), len(rows) // experts)
        out = run_experts(rows, ids[:, None], shares[:, None], load, *weights, self.product)
        return add_rows(self.combine(out, even, even, group), tokens, places)


def prepare(part: CausalLM) -> None:
    """Let a part run on tensors without numbers: one document a row, experts loaded alike."""
    part.mask = lambda positions: None  # type: ignore[method-assign]
    if isinstance(part.model.rotary, SlicedRotary):  # attention to a row's chunks needs no mask
        part.model.rotary.slices.last = lambda *sizes: None  # type: ignore[method-assign]
    for moe in part.moe_layers().values():
        moe.experts.multiple = 1  # the numbers are those of a GPU
        if isinstance(moe.experts, SplitExperts):
            moe.experts.__class__ = BalancedExperts


def run(setting: Setting, rank: int, mesh: Mesh, parallel: Parallel) -> RankReport:
    """One micro-batch through every part of a rank, under the fake mode."""
    holders: list[PipelinePart] | list[CausalLM] = parallel.stages or parallel.parts
    for holder in holders:
        holder.to_empty(device="cpu")
    if setting.plan.pipeline == 1:  # else the first and the last stage each hold a table
        for part in parallel.parts:
            part.tie()
    report = at_rest(setting, rank, mesh, parallel.parts)
    for holder in holders:
        backward(forward(setting, holder))  # gradients are there from the first micro-batch on
        report.parts.append(run_part(setting, holder, mesh))
    return report


def at_rest(setting: Setting, rank: int, mesh: Mesh, parts: list[CausalLM]) -> RankReport:
    """Weights and gradients in float32, and AdamW's two moments, shared out where asked."""
    plan = setting.plan
    numbers = sum(local(p).numel() for part in parts for p in part.parameters())
    weights = weights_of(parts, mesh)
    whole = sum(whole_weights(part, mesh) for part in parts)
    # Micro-batches of a pipeline add up whole gradients in float32 before they are scattered.
    added = 2 * whole if plan.pipeline > 1 and setting.micro_batches > 1 else 0
    place = mesh.rank("pipeline")
    return RankReport(
        rank=rank,
        place=place,
        parameters=numbers,
        weights=4 * numbers,
        gradients=4 * numbers,
        optimizer=2 * setting.moment * (most_stepped(weights, mesh) if plan.zero else numbers),
        gathered=whole + added,
        averaged=averaged(weights, plan.zero),
        in_flight=running_of(plan).in_flight(plan.pipeline, place, setting.micro_batches),
        stride=min(plan.pipeline, setting.micro_batches),
        micro_batches=setting.micro_batches,
        groups=group_names(mesh),
        tensors=first_layer(parts[0]),
    )


def run_part(setting: Setting, holder: PipelinePart | CausalLM, mesh: Mesh) -> Part:
    """Forward and backward of one micro-batch through a stage, or through the whole model."""
    part = holder.model if isinstance(holder, PipelinePart) else holder
    assert isinstance(part, CausalLM)
    held = enumerate(part.model.layers)
    layers = [number for number, layer in held if any(True for _ in layer.parameters())]
    tracker, movement = Tracker(), Movement(setting.compile)
    tracker.track_external(holder)
    with tracker:
        state = live(tracker) + whole_weights(part, mesh)  # weights and gradients
        with counted(movement) as there:
            outs = forward(setting, holder)
        kept = max(live(tracker) - state, 0)
        with counted(movement) as back:
            backward(outs)
        fullest = max(live(tracker, "peak") - state, 0)
    return Part(layers, there, back, kept, fullest)


def backward(outs: list[Tensor]) -> None:
    """The other way."""
    torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])


@torch.autocast("cpu", torch.bfloat16)
def forward(setting: Setting, holder: PipelinePart | CausalLM) -> list[Tensor]:
    """What a micro-batch leaves: hidden states for the next stage, or the loss."""
    batch = rows_of(setting)
    if not isinstance(holder, PipelinePart):
        return [loss(setting, holder, batch)]
    holder.micro_batches, holder.loss = iter([batch]), lambda m, micro: loss(setting, m, micro)
    received = hidden_rows(setting, routes(holder.model))
    out = holder(torch.arange(setting.rows)) if holder.first else holder(*received)
    outs = [out] if isinstance(out, Tensor) else list(out)
    return [found for found in outs if found.requires_grad]  # dense layers have no balance loss


class Tracker(MemTracker):
    """MemTracker of the whole alone: by module it refuses those that run twice, as heads do."""

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        pass

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        pass

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None:
        pass

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None:
        pass


def live(tracker: MemTracker, when: str = "current") -> int:
    """Bytes that exist now, or at the peak."""
    return int(tracker.get_tracker_snapshot(when)[torch.device("cpu")]["Total"])


def rows_of(setting: Setting) -> Batch:
    """A micro-batch of whole rows."""
    shape = (setting.rows, setting.length)
    tokens = torch.zeros(shape, dtype=torch.int64)
    positions = torch.arange(setting.length).expand(shape).contiguous()
    return Batch(tokens, positions, tokens)


def hidden_rows(setting: Setting, routed: bool) -> list[Tensor]:
    """What the stage before sends: hidden states, and with experts their balance loss so far."""
    share = setting.length // (setting.plan.context * setting.plan.tensor)
    shape = (setting.rows, share, setting.config.hidden_size)
    hidden = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
    balance = torch.zeros(setting.rows, dtype=torch.bfloat16, requires_grad=True)
    return [hidden, balance] if routed else [hidden]


def loss(setting: Setting, part: CausalLM, batch: Batch) -> Tensor:
    """The model's loss and its multi-token modules'."""
    hidden: Tensor = part(batch.tokens, batch.positions)
    total = head_loss(part, hidden, batch.targets)
    for k in range(setting.depth):
        hidden = part.mtp(k, hidden, batch.tokens, batch.positions)
        total = total + head_loss(part, hidden, batch.targets)
    return total


def head_loss(part: CausalLM, hidden: Tensor, targets: Tensor) -> Tensor:
    """The loss of `models/loss.py` where every token counts, which cannot be seen in fake ones."""

    def read(h: Tensor, weight: Tensor, t: Tensor, softmax: Softmax | None = None) -> Tensor:
        kernel = softmax.gradient if softmax else softmax_and_gradient
        return counted_cross_entropy_sum(h.flatten(0, -2), weight, t.flatten(), kernel, "cuda")

    out: Tensor = part.lm_head(hidden, targets, read)
    return out
