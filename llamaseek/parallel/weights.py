"""A rank's own numbers of every weight: what is added up, clipped, stepped and saved.

A weight is whole (a plain parameter) or split (a DTensor, which says how). Optimizer and clipping
work on the numbers at hand, so that no layout needs an optimizer of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llamaseek.models import CausalLM
from llamaseek.parallel.collectives import Group
from llamaseek.parallel.expert import SplitExperts
from llamaseek.parallel.mesh import Mesh

BUCKET = 2**23  # numbers that are sent at once
RECEIVED = ".embed_tokens.embed_tokens."


@dataclass(frozen=True)
class Weight:
    """One weight. `own` shares memory with `parameter`; `group` are the ranks that have gradients
    of the same numbers; `second` marks a copy in the last stage of what the first one holds.
    """

    name: str
    parameter: nn.Parameter
    own: nn.Parameter
    group: Group = None
    copies: int = 1
    shared: bool = False
    second: bool = False

    def like(self, own: Tensor) -> Tensor:
        """Numbers of this rank as the split tensor they are part of, for saving and loading."""
        whole = self.parameter
        if not isinstance(whole, DTensor) or own.dim() != whole.dim():
            return own
        return DTensor.from_local(
            own,
            whole.device_mesh,
            whole.placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )


def weights_of(parts: list[CausalLM], mesh: Mesh | None) -> list[Weight]:
    """Every weight of this rank's parts, under the name it has in the whole model."""
    found = []
    for part in parts:
        spread = {
            parameter
            for module in part.modules()
            if isinstance(module, SplitExperts) and module.expert is not None
            for parameter in module.parameters()
        }
        for name, parameter in part.named_parameters():
            if mesh is None:
                found.append(Weight(name, parameter, parameter))
            else:
                found.append(_weight(part, name, parameter, mesh, parameter in spread))
    return found


def _weight(part: CausalLM, name: str, parameter: nn.Parameter, mesh: Mesh, spread: bool) -> Weight:
    name = name.replace(RECEIVED, ".embed_tokens.")
    if part.config.tie_word_embeddings and name == "lm_head.weight":
        name = "model.embed_tokens.weight"
    own, splits, over_tensor = parameter, 1, False
    if isinstance(parameter, DTensor):
        mine = parameter.detach()
        assert isinstance(mine, DTensor)
        own = nn.Parameter(mine.to_local(), parameter.requires_grad)
        names, grid = parameter.device_mesh.mesh_dim_names or (), parameter.device_mesh
        dims = [i for i, kind in enumerate(parameter.placements) if not kind.is_replicate()]
        splits = prod(grid.size(i) for i in dims)
        over_tensor = any(names[i] == "tensor" for i in dims)
    group = mesh.replicas if over_tensor else mesh.replicas_and_tensor
    ahead = len(part.model.layers) > part.config.num_hidden_layers
    shared = mesh.pipeline is not None and name == "model.embed_tokens.weight"
    shared = shared and (ahead or part.tied)
    return Weight(
        name=name,
        parameter=parameter,
        own=own,
        group=mesh.expert_copies if spread else group,
        copies=mesh.layout.gpus // (mesh.layout.pipeline * splits),
        shared=shared,
        second=shared and mesh.rank("pipeline") > 0,
    )


def own_gradients(weights: Iterable[Weight]) -> None:
    """Set `own.grad` to each weight's gradient as this rank has it."""
    for weight in weights:
        gradient = weight.parameter.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.to_local()
        weight.own.grad = gradient


def add_replicas(weights: list[Weight], ends: Group) -> None:
    """Add up the gradients of all ranks that computed some of the same numbers. In place.

    Once a step, however many micro-batches there were; `ends` are the first and last stage. A table
    that both have has a gradient on both, 0 where the objective runs no multi-token modules.
    """
    by_group: dict[Group, list[Tensor]] = {}
    for weight in weights:
        if weight.own.grad is not None and weight.group is not None:
            by_group.setdefault(weight.group, []).append(weight.own.grad)
    for group, gradients in by_group.items():
        add_up(gradients, group)
    if ends is not None:
        shared = [w.own for w in weights if w.shared]
        for own in shared:
            own.grad = torch.zeros_like(own) if own.grad is None else own.grad
        add_up([own.grad for own in shared if own.grad is not None], ends)


@torch.no_grad()
def add_up(tensors: list[Tensor], group: Group) -> None:
    """All-reduce in place, many tensors at a time."""
    for bucket in buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat, group=group)
        for tensor, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    """In order, at most `BUCKET` numbers together unless one tensor has more."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def squared_norm(weights: list[Weight], device: torch.device) -> Tensor:
    """This rank's share of the squared gradient norm: over all ranks each number counts once."""
    kept = [w for w in weights if w.own.grad is not None and not w.second]
    if not kept:
        return torch.zeros((), device=device)
    norms = torch._foreach_norm([w.own.grad for w in kept if w.own.grad is not None])
    shares = torch.tensor([1 / w.copies for w in kept], dtype=norms[0].dtype)
    shares = shares.to(norms[0].device, non_blocking=True)
    return (torch.stack(norms).square() * shares).sum().to(device)


class Zero:
    """Who steps which weight."""

    def __init__(self, weights: list[Weight], mesh: Mesh) -> None:
        by_group: dict[Group, list[Weight]] = {}
        for weight in weights:
            spread = weight.group is mesh.expert_copies  # None: this rank alone has these experts
            by_group.setdefault(mesh.expert_copies if spread else mesh.data, []).append(weight)
        self.by_rank = [
            (group, deal(some, group.size())) for group, some in by_group.items() if group
        ]
        self.alone = by_group.get(None, [])

    def mine(self) -> list[Weight]:
        """What this rank's optimizer steps."""
        by_rank = [hand for group, hands in self.by_rank for hand in hands[group.rank()]]
        return [*self.alone, *by_rank]

    @torch.no_grad()
    def share(self) -> None:
        """After a step: every rank gets what the others have stepped."""
        for group, hands in self.by_rank:
            for owner, hand in enumerate(hands):
                stepped = [w.own.data for w in hand if w.own.requires_grad]
                for bucket in buckets(stepped):
                    flat = torch.cat([tensor.flatten() for tensor in bucket])
                    dist.broadcast(flat, group=group, group_src=owner)
                    parts = flat.split([tensor.numel() for tensor in bucket])
                    for tensor, part in zip(bucket, parts, strict=True):
                        tensor.copy_(part.view_as(tensor))


def deal(weights: list[Weight], ranks: int) -> list[list[Weight]]:
    """Weights by rank, so that each rank has about the same number of numbers."""
    hands: list[list[Weight]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for weight in sorted(weights, key=lambda w: -w.own.numel()):
        rank = held.index(min(held))
        hands[rank].append(weight)
        held[rank] += weight.own.numel()
    return hands
