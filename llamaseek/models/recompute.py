"""Activations that the backward pass computes again instead of keeping.

"full" keeps a layer's input alone. "selective" keeps what matrix products give, which is most of
the work, and computes norms, rotations and activation functions again (Korthikanti et al. 2022).
Products far wider than what they are made of are cheap to make and dear to keep, and so are those
of experts, which each token has several of: latent attention's up-projections (as in the V3 report
§3.2.3) and the experts are computed again. Of products that are parts of a sum over ranks, the
rank's share of the sum is kept instead; rows that came from other ranks are kept, so that nothing
is sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    aten._scaled_mm_v2.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
COME = {  # from other ranks
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_to_all_single.default,
}
VARLEN = "torch_attn::_varlen_attn"  # an operator that is there once its module is imported
WIDE = 4  # times as wide as what it is made of
_unneeded: ContextVar[bool] = ContextVar("unneeded", default=False)


def unneeded() -> AbstractContextManager[None]:
    """No backward pass needs what products and sends inside give: "selective" does not keep it.

    A compiler sees that by itself.
    """
    return nullcontext() if torch.compiler.is_compiling() else _unneeded_here()


@contextmanager
def _unneeded_here() -> Iterator[None]:
    token = _unneeded.set(True)
    try:
        yield
    finally:
        _unneeded.reset(token)


def recompute(layers: Iterable[nn.Module], what: Recomputed) -> None:
    """Let layers run so that `what` of their activations is not kept. In place.

    Inside the layer's call, so that compiling a layer compiles this as well, and FSDP's gathering
    stays outside.
    """
    for layer in layers if what != "none" else ():
        layer.forward = partial(_recomputed, layer.forward, what)


def _recomputed(forward: Callable[..., Any], what: Recomputed, *args: Any) -> Any:
    """The layer's outputs."""
    if not torch.is_grad_enabled():
        return forward(*args)
    if what == "full":
        return checkpoint(forward, *args, use_reentrant=False)
    context = partial(create_selective_checkpoint_contexts, keep_products)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=context)


def keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the results of matrix products and attention kernels, and what other ranks sent."""
    product = operation in KEPT or operation.name() == VARLEN
    kept = operation in COME or (product and not wide(operation, args))
    kept = kept and not _unneeded.get()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def wide(operation: Any, args: Any) -> bool:
    """Whether a product's result is much wider than what it is made of."""
    return operation == aten.mm.default and bool(args[1].shape[1] > WIDE * args[1].shape[0])
