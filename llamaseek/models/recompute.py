"""Activations that the backward pass computes again instead of keeping.

"full" keeps a layer's input alone. "selective" keeps what matrix products give, which is most of
the work, and computes norms, rotations and activation functions again (Korthikanti et al. 2022). Of
products that are parts of a sum over ranks, the rank's share of the sum is kept instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
    aten._scaled_mm_v2.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
SUMS = {torch.ops._c10d_functional.reduce_scatter_tensor.default}
_summed: ContextVar[bool] = ContextVar("summed", default=False)


@contextmanager
def parts_of_sums() -> Iterator[None]:
    """Products inside are parts of sums over ranks: "selective" keeps the sums."""
    token = _summed.set(True)
    try:
        yield
    finally:
        _summed.reset(token)


def recomputed(layer: nn.Module, what: Recomputed, *args: Any) -> Any:
    """The layer's outputs; `what` of its activations is not kept."""
    if what == "full":
        return checkpoint(layer, *args, use_reentrant=False)
    context = partial(create_selective_checkpoint_contexts, keep_products)
    return checkpoint(layer, *args, use_reentrant=False, context_fn=context)


def keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the results of matrix products and attention kernels, and sums of products' parts."""
    kept = operation in SUMS or (operation in KEPT and not _summed.get())
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
