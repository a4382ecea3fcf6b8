"""Tensor parallel with sequence parallel: every matrix is split over the ranks of a node.

Between blocks each rank holds T / R of a row's tokens, and norms run on those. A block gathers
them, multiplies with its own heads or columns, and its last matrix's partial results are added
and split again (Megatron-LM, Shoeybi et al. 2019; sequence parallel, Korthikanti et al. 2022).
Weights are DTensors; the products run on each rank's own numbers. Gradients of what is not split
(norms, router, latent projections) are parts, one for each rank's tokens, and are added up once a
step with the replicas' (`parallel/weights.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F

from llamaseek.errors import UserError
from llamaseek.models.attention import GroupedQueryAttention, LatentAttention
from llamaseek.models.layers import GatedMLP
from llamaseek.models.recompute import unneeded
from llamaseek.parallel.collectives import Group, gather, scatter
from llamaseek.parallel.mesh import Mesh

ROWS, COLUMNS = 0, 1  # of a weight (out, in)
TOKENS = -2  # of activations (B, T, D) or (N, D)


def local(weight: Tensor) -> Tensor:
    """A rank's own numbers of a split weight, with gradients; a plain weight as it is."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


class SplitLinear(nn.Linear):
    """A linear layer of which this rank holds some rows of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) → (..., O / R)."""
        return F.linear(x, local(self.weight))


class SummedLinear(SplitLinear):
    """A linear layer of which this rank holds some columns of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I / R) → this rank's part of the sum (..., O)."""
        with unneeded():
            return super().forward(x)


def split(parameter: nn.Parameter, mesh: Mesh, dim: int) -> nn.Parameter:
    """The parameter as a DTensor of which each tensor rank keeps its share along `dim`."""
    if mesh.tensor is None:
        return parameter
    if parameter.shape[dim] % mesh.tensor.size():
        size = parameter.shape[dim]
        raise UserError(f"parallel.tensor: {mesh.tensor.size()} does not divide a width of {size}")
    # Every rank holds the same weights already, so nothing is sent.
    shared = distribute_tensor(
        parameter.data, mesh.root["tensor"], [Shard(dim)], src_data_rank=None
    )
    return nn.Parameter(shared, requires_grad=parameter.requires_grad)


def split_linears(module: nn.Module, mesh: Mesh, dims: dict[str, int]) -> None:
    """Put split layers in place of the named linear layers that `module` has."""
    for name, dim in dims.items():
        linear = getattr(module, name, None)
        if linear is None:
            continue
        kind = SplitLinear if dim == ROWS else SummedLinear
        replaced = kind(
            linear.in_features, linear.out_features, bias=False, device=torch.device("meta")
        )
        replaced.weight = split(linear.weight, mesh, dim)
        setattr(module, name, replaced)


def split_layer(layer: nn.Module, mesh: Mesh) -> None:
    """Split attention and dense feed-forward of a layer; routed experts are `expert.py`'s."""
    attention = getattr(layer, "self_attn", None)
    if isinstance(attention, LatentAttention):
        split_latent_attention(attention, mesh)
    elif isinstance(attention, GroupedQueryAttention):
        split_grouped_attention(attention, mesh)
    mlp = getattr(layer, "mlp", None)
    dense = mlp if isinstance(mlp, GatedMLP) else getattr(mlp, "shared_experts", None)
    if isinstance(dense, GatedMLP):
        split_feed_forward(dense, mesh)


def split_grouped_attention(attention: GroupedQueryAttention, mesh: Mesh) -> None:
    """Whole key-value heads, each with its query heads."""
    rows = dict.fromkeys(("q_proj", "k_proj", "v_proj"), ROWS)
    split_linears(attention, mesh, {**rows, "o_proj": COLUMNS})
    gather_before(attention, mesh.tensor)
    scatter_after(attention.o_proj, mesh.tensor)


def split_latent_attention(attention: LatentAttention, mesh: Mesh) -> None:
    """Whole heads. The latents, made of each rank's own tokens, are what is gathered: they are
    narrower than the hidden states.
    """
    rows = dict.fromkeys(("q_proj", "q_b_proj", "kv_b_proj"), ROWS)
    split_linears(attention, mesh, {**rows, "o_proj": COLUMNS})
    if attention.q_lora_rank is None:
        gather_before(attention.q_proj, mesh.tensor)
    else:
        gather_after(attention.q_a_proj, mesh.tensor)
    gather_after(attention.kv_a_proj_with_mqa, mesh.tensor)
    scatter_after(attention.o_proj, mesh.tensor)


def split_feed_forward(mlp: GatedMLP, mesh: Mesh) -> None:
    """Columns of the inner width."""
    split_linears(mlp, mesh, {"gate_proj": ROWS, "up_proj": ROWS, "down_proj": COLUMNS})
    gather_before(mlp, mesh.tensor)
    scatter_after(mlp.down_proj, mesh.tensor)


def gather_before(module: nn.Module, group: Group) -> None:
    """The module sees the tokens of all ranks."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gather(args[0], TOKENS, group), *args[1:])

    module.register_forward_pre_hook(hook)


def gather_after(module: nn.Module, group: Group) -> None:
    """What the module makes of its tokens is put together with the other ranks'."""
    module.register_forward_hook(lambda module, args, out: gather(out, TOKENS, group))


def scatter_after(module: nn.Module, group: Group) -> None:
    """The module's partial results are added up, and each rank keeps its tokens."""
    module.register_forward_hook(lambda module, args, out: scatter(out, TOKENS, group))
