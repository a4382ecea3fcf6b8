"""FSDP2: each rank of the shard group keeps a share of every weight, gradient and moment.

A layer's weights are gathered for its forward and its backward, and its gradients scattered after
the last micro-batch. Sums, not means: the loop has divided each loss by its global count.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from llamaseek.models import CausalLM
from llamaseek.parallel.expert import SplitExperts
from llamaseek.parallel.mesh import Mesh
from llamaseek.recipe_parallel import ParallelRecipe


def shard_weights(
    root: nn.Module, model: CausalLM, mesh: Mesh, plan: ParallelRecipe, dtype: torch.dtype
) -> None:
    """Shard every layer of `model`, and what is left of `root` (embedding, norm, head) together.

    Weights spread over expert ranks are left as they are. `dtype` is what products run in: what is
    gathered is gathered in it. Under a pipeline the weights stay whole for a step, as every
    micro-batch needs them (Llama 3 §3.3.2).
    """
    spread = {
        parameter
        for module in model.modules()
        if isinstance(module, SplitExperts) and module.expert is not None
        for parameter in module.parameters()
    }
    narrow = dtype if dtype.itemsize < 4 else None
    policy = MixedPrecisionPolicy(
        param_dtype=narrow,
        reduce_dtype=torch.float32 if narrow else None,
        cast_forward_inputs=False,
    )
    offload = CPUOffloadPolicy() if plan.offload else OffloadPolicy()
    again = plan.reshard and mesh.pipeline is None
    shared = {"mesh": mesh.root["shard"], "mp_policy": policy, "offload_policy": offload}
    for layer in model.model.layers:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, reshard_after_forward=again, ignored_params=spread, **shared)  # type: ignore[call-overload]
    # The root's weights stay gathered from forward to backward: multi-token modules and losses
    # read embedding and head after the root's forward.
    fully_shard(root, reshard_after_forward=False, ignored_params=spread, **shared)  # type: ignore[call-overload]
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # all that gloo has
