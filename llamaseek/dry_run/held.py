"""What a rank of a dry run holds: its numbers, its share of a layer, the names of its groups."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.distributed.tensor import DTensor

from llamaseek.models import CausalLM
from llamaseek.parallel.layers import local
from llamaseek.parallel.mesh import Mesh
from llamaseek.parallel.weights import Weight, Zero


@dataclass(frozen=True)
class HeldTensor:
    """A tensor of one layer: numbers in all, numbers on this rank, the dimensions that split it."""

    name: str
    whole: int
    held: int
    dims: tuple[str, ...]


def whole_weights(part: CausalLM, mesh: Mesh) -> int:
    """Bytes in bf16 of a part's weights once they are gathered from the shard ranks."""
    ranks = mesh.sizes["shard"]
    if ranks == 1:
        return 0
    split = (p for p in part.parameters() if isinstance(p, DTensor))
    names = ((p, p.device_mesh.mesh_dim_names or ()) for p in split)
    return sum(2 * ranks * local(p).numel() for p, dims in names if "shard" in dims)


def most_stepped(weights: list[Weight], mesh: Mesh) -> int:
    """Parameters with moments on the fullest rank under ZeRO-1, which splits by whole weights."""
    zero = Zero(weights, mesh)
    hands = (
        max(sum(w.own.numel() for w in hand) for hand in by_rank) for _, by_rank in zero.by_rank
    )
    return sum(w.own.numel() for w in zero.alone) + sum(hands)


def averaged(weights: list[Weight], zero: bool) -> int:
    """Bytes: gradients of the same numbers are scattered and gathered; ZeRO-1 gathers weights."""
    shared = [(w.own.numel(), w.group.size()) for w in weights if w.group is not None]
    return sum(round(4 * (2 + zero) * count * (n - 1) / n) for count, n in shared)


def first_layer(part: CausalLM) -> list[HeldTensor]:
    """The tensors of the first layer that a part holds."""
    for layer in part.model.layers:
        found = [held(name, parameter) for name, parameter in layer.named_parameters()]
        if found:
            return found
    return []


def held(name: str, parameter: nn.Parameter) -> HeldTensor:
    """How a tensor is split; what is spread over expert ranks stands as its own part."""
    if not isinstance(parameter, DTensor):
        return HeldTensor(name, parameter.numel(), parameter.numel(), ())
    names = parameter.device_mesh.mesh_dim_names or ()
    split = zip(names, parameter.placements, strict=True)
    dims = tuple(str(dim) for dim, kind in split if not kind.is_replicate())
    return HeldTensor(name, parameter.numel(), local(parameter).numel(), dims)


def group_names(mesh: Mesh) -> dict[str, str]:
    """What each process group is for."""
    wide = [dim for dim, size in mesh.sizes.items() if size > 1]
    named: dict[str, str] = {str(mesh.root.get_group(dim).group_name): dim for dim in wide}
    if mesh.expert is not None:
        named["exchange"] = "expert"
    return named
