"""The ranks of a run, laid out by the plan's degrees, and the groups they talk in.

Tensor ranks are neighbors, then context, shard, data and pipeline: what talks most stands
closest. Experts are spread over the data and shard ranks together.
"""

from __future__ import annotations

from math import prod

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llamaseek.parallel.collectives import Group
from llamaseek.plan.layout import Layout

DIMS = ("pipeline", "data", "shard", "context", "tensor")
EXPERT_DIMS = ("pipeline", "copies", "expert", "context", "tensor")


class Mesh:
    """The process groups of one layout. All ranks make it together, in the same order."""

    def __init__(self, layout: Layout, device: str) -> None:
        self.layout = layout
        self.sizes = {dim: getattr(layout, dim) for dim in DIMS}
        self.root = init_device_mesh(device, tuple(self.sizes.values()), mesh_dim_names=DIMS)
        self.tensor, self.context = self._group("tensor"), self._group("context")
        self.data = self._group("data")
        self.pipeline, self.shard = self._group("pipeline"), self._group("shard")
        self.slices = self._group("context", "tensor")  # ranks that hold parts of the same rows
        # Ranks whose gradients of the same numbers are added up after a step's backward passes.
        self.replicas = self._group("data", "context")
        self.replicas_and_tensor = self._group("data", "context", "tensor")
        self.ends = self._first_and_last()
        self.expert: Group = None
        self.expert_copies: Group = None
        self.experts: DeviceMesh | None = None
        if layout.expert > 1:
            self._spread_experts(device)

    def rank(self, dim: str) -> int:
        """This rank's place along a dimension."""
        return int(self.root.get_local_rank(dim))

    @property
    def row_rank(self) -> int:
        """Which share of a step's rows this rank takes."""
        return self.rank("data") * self.layout.shard + self.rank("shard")

    def _spread_experts(self, device: str) -> None:
        layout = self.layout
        shape = (
            layout.pipeline,
            layout.replicas // layout.expert,
            layout.expert,
            layout.context,
            layout.tensor,
        )
        ranks = torch.arange(layout.gpus).view(shape)
        self.experts = DeviceMesh(device, ranks, mesh_dim_names=EXPERT_DIMS)
        self.expert = self.experts["expert"].get_group()
        if shape[1] * layout.context > 1:
            flat = self.experts["copies", "context"]._flatten("expert_copies")
            self.expert_copies = flat.get_group()

    def _first_and_last(self) -> Group:
        """The first and last stage's ranks, which both hold the embedding where it is shared."""
        if self.layout.pipeline <= 2:
            return self.pipeline
        ranks = torch.arange(self.layout.gpus).view(self.layout.pipeline, -1)
        pairs = ranks[[0, -1]].T.tolist()
        group, _ = dist.new_subgroups_by_enumeration(pairs)
        return group

    def _group(self, *dims: str) -> Group:
        """The ranks that differ from this one in `dims` only; None where there are no others."""
        wide = tuple(dim for dim in dims if self.sizes[dim] > 1)
        if not wide:
            return None
        mesh = self.root[wide if len(wide) > 1 else wide[0]]
        group: dist.ProcessGroup = (
            mesh._flatten("_".join(wide)) if len(wide) > 1 else mesh
        ).get_group()
        assert group.size() == prod(self.sizes[dim] for dim in wide)
        return group
