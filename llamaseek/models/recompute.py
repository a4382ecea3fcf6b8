"""Activations that the backward pass computes again instead of keeping.

"full" keeps a layer's input alone. "selective" keeps what matrix products give, which is most of
the work, and computes norms, rotations and activation functions again (Korthikanti et al. 2022).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recomputed = Literal["none", "selective", "full"]
aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._grouped_mm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def recomputed(layer: nn.Module, what: Recomputed, *args: Any) -> Any:
    """The layer's outputs; `what` of its activations is not kept."""
    if what == "full":
        return checkpoint(layer, *args, use_reentrant=False)
    context = partial(create_selective_checkpoint_contexts, keep_products)
    return checkpoint(layer, *args, use_reentrant=False, context_fn=context)


def keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the results of matrix products and attention kernels."""
    kept = operation in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
