"""The ranks of a run as the training loop sees them; one process is a run of one rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.documents import on_device
from llamaseek.models.drawn import draw
from llamaseek.parallel.apply import Parallel, parallelize
from llamaseek.parallel.mesh import Mesh
from llamaseek.parallel.pipeline import LossOf, Pipeline
from llamaseek.parallel.weights import Zero, add_replicas, own_gradients, squared_norm, weights_of
from llamaseek.plan.layout import DEGREES, Layout
from llamaseek.recipe.parallel import ParallelRecipe

PLACES = ("ends",)  # of what objectives add: columns of a row, -1 where there is none


def layout_of(plan: ParallelRecipe) -> Layout:
    """The plan's degrees as the planner's layout."""
    return Layout(**{name: getattr(plan, name) for name in DEGREES})


class ParallelModel:
    """This rank's parts of the model, and what it does together with the others."""

    def __init__(
        self, model: CausalLM, plan: ParallelRecipe, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.plan, self.device, self.dtype = plan, device, dtype
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.main = self.rank == 0
        self.mesh = Mesh(layout_of(plan), device.type) if dist.is_initialized() else None
        held = Parallel([model], [])
        if self.mesh is not None:
            held = parallelize(model, self.mesh, plan, dtype, self._settle)
        else:
            self._settle(model)
        self.parts, self.rows = held.parts, held.rows
        self.weights = weights_of(self.parts, self.mesh)
        self.zero = Zero(self.weights, self.mesh) if self.mesh is not None and plan.zero else None
        self.pipeline: Pipeline | None = None
        if self.mesh is not None and held.stages:
            self.pipeline = Pipeline(held.stages, self.mesh, plan, device)
        self.roots: list[FSDPModule] = [
            root for root in held.stages or held.parts if isinstance(root, FSDPModule)
        ]

    def _settle(self, module: torch.nn.Module) -> None:
        """Weights to this rank's device, where those of a new model are drawn: trained ones in
        what the optimizer steps, float32 or float64, frozen ones in what products run in. FSDP
        wants all of a group in one dtype.
        """
        draw(module, self.device)
        module.to(self.device)
        wide = torch.promote_types(self.dtype, torch.float32)
        narrow = self.dtype if self.plan.shard == 1 else wide
        for parameter in module.parameters():
            kept = wide if parameter.requires_grad else narrow
            if parameter.dtype != kept:
                parameter.data = parameter.data.to(kept)

    @property
    def own(self) -> dict[str, torch.nn.Parameter]:
        """This rank's numbers of every weight by name, which share the model's memory."""
        return {weight.name: weight.own for weight in self.weights}

    def stepped(self) -> dict[str, torch.nn.Parameter]:
        """What this rank's optimizer steps, by name: all its weights, or with ZeRO-1 its share of
        them."""
        return {w.name: w.own for w in (self.weights if self.zero is None else self.zero.mine())}

    def after_step(self) -> None:
        """Weights that other ranks have stepped come here."""
        if self.zero is not None:
            self.zero.share()

    def share(self, batch: Batch, rows: int) -> Batch:
        """This rank's rows of a step's batch, padded so that it divides over ranks and
        micro-batches of `rows` rows. Context and tensor ranks get whole rows.
        """
        if self.mesh is None:
            return batch
        each = self.mesh.layout.replicas
        count = self._rounded(-(-len(batch.tokens) // each), rows)
        if self.rows is not None:
            self.rows.time = batch.tokens.shape[1]
        batch = pad(batch, count * each, self.columns)
        return batch.select(slice(self.mesh.row_rank * count, (self.mesh.row_rank + 1) * count))

    def _rounded(self, count: int, rows: int) -> int:
        """A rank's rows so that they are whole micro-batches, of which a pipeline needs as many as
        it has ranks, and where it interleaves a multiple of that.
        """
        if self.pipeline is None:
            return count
        full = rows * self.plan.pipeline
        step = full if self.plan.stages > self.plan.pipeline else rows
        return max(-(-count // step) * step, full)

    @property
    def columns(self) -> int:
        """What a row's length must be a multiple of."""
        return self.plan.tensor * (2 * self.plan.context if self.plan.context > 1 else 1)

    def run(self, batch: Batch, rows: int, loss: LossOf, backward: bool = True) -> None:
        """`loss` of every micro-batch of this rank's rows, and its gradients."""
        if self.pipeline is not None:
            self.pipeline.run(batch, rows, loss, backward, self.dtype)
        else:
            micro_batches = list(batch.split(rows))
            for number, micro in enumerate(micro_batches, start=1):
                last = number == len(micro_batches)
                for root in self.roots:  # gradients are sent after the last alone
                    root.set_requires_gradient_sync(last)
                total = loss(self.parts[0], on_device(micro, self.device))
                if backward:
                    total.backward()
        if not backward:
            self.reshard()

    def reshard(self) -> None:
        """Give back gathered weights, which no backward pass will."""
        for root in self.roots:
            for module in root.modules():  # type: ignore[attr-defined]
                if isinstance(module, FSDPModule):
                    module.reshard()

    def gradients(self) -> None:
        """After a step's backward passes: every rank's own gradients become the whole run's."""
        own_gradients(self.weights)
        if self.mesh is not None:
            add_replicas(self.weights, self.mesh.ends)

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients so that their norm over all ranks is at most `limit`; the norm, a
        scalar on the device. Where it is not finite the gradients are not either.
        """
        norm = self.total(squared_norm(self.weights, self.device)).sqrt()
        gradients = [w.own for w in self.weights if w.own.grad is not None]
        if gradients:
            torch.nn.utils.clip_grads_with_norm_(gradients, limit, norm)
        return norm

    def zero_gradients(self) -> None:
        """Forget the step's gradients."""
        for weight in self.weights:
            weight.parameter.grad = weight.own.grad = None

    def loads(self) -> dict[int, Tensor]:
        """Tokens an expert over all ranks since the last call, by layer; on several ranks also of
        layers that did not run, which have 0.
        """
        mine = {layer: load for part in self.parts for layer, load in part.expert_load.items()}
        for part in self.parts:
            part.expert_load = {}
        if self.mesh is None:
            return mine
        config = self.parts[0].config
        experts = config.num_experts
        layers = len(self.parts[0].model.layers)
        if not experts:
            return {}
        table = torch.zeros(layers, experts, dtype=torch.int64, device=self.device)
        for layer, load in mine.items():
            table[layer] = load
        table = self.total(table)
        return {layer: table[layer] for layer in range(layers) if config.is_moe_layer(layer)}

    def counted(self, value: Tensor) -> Tensor:
        """The sum over ranks of what the ranks that share rows all have whole."""
        mesh = self.mesh
        if mesh is None:
            return value
        first = mesh.rank("context") == 0 and mesh.rank("tensor") == 0
        return self.total(value if first else torch.zeros_like(value))

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.mesh is not None:
            dist.all_reduce(value)
        return value

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank."""
        if self.mesh is None:
            return mine
        return bool(self.total(torch.tensor(int(mine), device=self.device)))

    def from_last_stage(self, value: dict[str, str]) -> dict[str, str]:
        """What the last pipeline stage knows, on every rank."""
        if self.pipeline is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.world - 1)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.mesh is not None:
            dist.barrier()

    def agree(self, error: str | None, group: dist.ProcessGroup | None = None) -> None:
        """Go on only if no rank has an error; else all raise the first one's as `UserError`."""
        errors = [error]
        if self.mesh is not None:
            errors = [None] * self.world
            dist.all_gather_object(errors, error, group=group)
        for found in errors:
            if found is not None:
                raise UserError(found)

    def layers(self) -> Iterator[torch.nn.Module]:
        """Every layer that this rank runs."""
        for part in self.parts:
            yield from part.model.layers


def pad(batch: Batch, rows: int, multiple: int) -> Batch:
    """More rows, and columns up to a multiple, in which nothing counts.

    Padding is documents of one token without a target; whole numbers that go with tokens become
    -1, as do places in a row, everything else 0. Where rows are added, the extra `real` is 1 for
    the others.
    """
    count, time = batch.tokens.shape
    wide = -(-time // multiple) * multiple
    if (count, time) == (rows, wide):
        return batch

    def fill(x: Tensor, value: int) -> Tensor:
        columns = wide - time if x.shape[1:2] == (time,) else 0
        space = (0, 0) * (x.dim() - 2) + ((0, columns) if x.dim() > 1 else ())
        return F.pad(x, (*space, 0, rows - count), value=value)

    def nowhere(name: str, x: Tensor) -> bool:
        beside_tokens = x.shape == batch.tokens.shape and not x.is_floating_point()
        return beside_tokens or name in PLACES

    real = {"real": torch.ones(count)} if rows > count else {}
    extra = {name: fill(x, -nowhere(name, x)) for name, x in (batch.extra | real).items()}
    targets = fill(batch.targets, IGNORE)
    return Batch(fill(batch.tokens, 0), fill(batch.positions, 0), targets, extra)
