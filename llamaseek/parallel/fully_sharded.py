"""FSDP2: each rank of the shard group keeps a share of every weight, gradient and moment.

A layer's weights are gathered for its forward and its backward, and its gradients scattered after
the last micro-batch. Sums, not means: the loop has divided each loss by its global count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from llamaseek.models.drawn import OWNED
from llamaseek.parallel.expert import SplitExperts
from llamaseek.parallel.mesh import Mesh
from llamaseek.recipe.parallel import ParallelRecipe

GIVEN_BACK = "given_back"  # a layer's attribute: whether its weights are resharded after forward


def shard_layer(layer: nn.Module, mesh: Mesh, plan: ParallelRecipe, dtype: torch.dtype) -> None:
    """Shard a layer's weights; those spread over expert ranks are left as they are.

    `dtype` is what products run in: what is gathered is gathered in it. Under a pipeline the
    weights stay whole for a step, as every micro-batch needs them (Llama 3 §3.3.2).
    """
    if any(True for _ in layer.parameters()):
        again = plan.reshard and mesh.pipeline is None
        setattr(layer, GIVEN_BACK, again)
        _shard(layer, mesh, plan, dtype, again)


def shard_rest(root: nn.Module, mesh: Mesh, plan: ParallelRecipe, dtype: torch.dtype) -> None:
    """Shard what of `root` is in no sharded layer (embedding, norm, head), together."""
    # These weights stay gathered from forward to backward: multi-token modules and losses read
    # embedding and head after the root's forward.
    _shard(root, mesh, plan, dtype, again=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # all that gloo has


def _shard(
    module: nn.Module, mesh: Mesh, plan: ParallelRecipe, dtype: torch.dtype, again: bool
) -> None:
    spread = {
        parameter
        for inner in module.modules()
        if isinstance(inner, SplitExperts) and inner.expert is not None
        for parameter in inner.parameters()
    }
    narrow = dtype if dtype.itemsize < 4 else None
    policy = MixedPrecisionPolicy(
        param_dtype=narrow,
        reduce_dtype=torch.float32 if narrow else None,
        cast_forward_inputs=False,
    )
    gpu = mesh.root.device_type == "cuda"
    fully_shard(  # type: ignore[call-overload]
        module,
        mesh=mesh.root["shard"],
        reshard_after_forward=again,
        shard_placement_fn=_freeing(module),
        mp_policy=policy,
        offload_policy=CPUOffloadPolicy(pin_memory=gpu) if plan.offload else OffloadPolicy(),
        ignored_params=spread,
    )


def _freeing(module: nn.Module) -> Callable[[nn.Parameter], None] | None:
    """Called with one weight after the other, just before FSDP copies this rank's share out of it:
    frees those that are cut by then, where they were drawn for that. FSDP keeps all until the end.
    """
    whole = {name: p for name, p in module.named_parameters() if hasattr(p, OWNED)}

    def placement(parameter: nn.Parameter) -> None:
        """None: along the first dimension."""
        for name in [n for n, p in whole.items() if module.get_parameter(n) is not p]:
            whole.pop(name).untyped_storage().resize_(0)

    return placement if whole else None


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[bool]:
    """Every rank has all weights of a sharded model meanwhile, so that forwards send nothing and
    ranks may run different ones. Gives whether the model is sharded; nothing happens if not.

    All ranks of the shard group enter and leave together. Not for gradients, nor for steps.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.reshard()
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield bool(modules)
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(getattr(module, GIVEN_BACK, False), recurse=False)
