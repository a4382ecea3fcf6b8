"""`parallelize(model, mesh, plan)`: a plain model becomes this rank's share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from llamaseek.models import CausalLM
from llamaseek.parallel.context import Slices, split_rows
from llamaseek.parallel.expert import SplitRows, spread_experts
from llamaseek.parallel.fully_sharded import shard_layer, shard_rest
from llamaseek.parallel.mesh import Mesh
from llamaseek.parallel.pipeline import PipelinePart, cut
from llamaseek.parallel.tensor import split_layer, split_vocabulary
from llamaseek.recipe.parallel import ParallelRecipe


@dataclass(frozen=True)
class Parallel:
    """What one rank holds: parts of the model, and under a pipeline the stages that run them."""

    parts: list[CausalLM]
    stages: list[PipelinePart]
    rows: SplitRows | None = None  # what of the rows is padding, where they are split


def as_it_is(module: nn.Module) -> None:
    """Leave a module where it is."""


def parallelize(
    model: CausalLM,
    mesh: Mesh,
    plan: ParallelRecipe,
    dtype: torch.dtype = torch.float32,
    settle: Callable[[nn.Module], None] = as_it_is,
) -> Parallel:
    """Cut `model` into this rank's stages, then split rows, of each layer matrices, experts and
    weights, and the vocabulary, in that order. Works on real, `meta` and fake tensors alike.

    `dtype` is what matrix products run in. `settle` brings a module's weights to where they are
    trained, just before they are split: one layer is whole there at a time. The model is used up:
    its layers move into the parts.
    """
    parts = cut(model, plan, mesh)
    stages: list[PipelinePart] = []
    if plan.pipeline > 1:
        indices = range(mesh.rank("pipeline"), plan.stages, plan.pipeline)
        stages = [
            PipelinePart(p, i, plan.stages, dtype) for p, i in zip(parts, indices, strict=True)
        ]
    slices = Slices(mesh.context)
    rows = SplitRows(slices, mesh.tensor)
    for number, part in enumerate(parts):
        if mesh.context is not None:
            split_rows(part, slices)
        for layer in part.model.layers:
            settle(layer)
            if mesh.tensor is not None:
                split_layer(layer, mesh)
            spread_experts(layer, mesh, rows, plan.fp8_dispatch)
            if mesh.shard is not None:
                shard_layer(layer, mesh, plan, dtype)
        for module in beside_layers(part):  # last, as embedding and head are cut together
            settle(module)
        if mesh.slices is not None:
            split_vocabulary(part, mesh, slices)
        if mesh.shard is not None:
            shard_rest(stages[number] if stages else part, mesh, plan, dtype)
    return Parallel(parts, stages, rows)


def beside_layers(part: CausalLM) -> Iterator[nn.Module]:
    """Embedding, rotary table, norm and head."""
    for name, module in (*part.model.named_children(), *part.named_children()):
        if name not in ("model", "layers"):
            yield module
