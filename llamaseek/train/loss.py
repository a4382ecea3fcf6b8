"""Cross-entropy over a large vocabulary without keeping the logits.

N tokens, D width, V vocabulary. The head's product, the softmax and its gradient are made chunk
by chunk in the forward pass, so that nothing of size N × V outlives a chunk and nothing is
computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORE = -100
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Logits in one chunk. On a CPU 8 MB of float32 stay in its caches; a GPU wants large products.
CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**27}


def chunk_length(weight: Tensor) -> int:
    """Tokens a chunk for a head of weight (V, D), at least 64."""
    return max(CHUNK_NUMBERS.get(weight.device.type, 2**23) // weight.shape[0], 64)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype matrix products run in here: autocast's where it is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def softmax_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p(target) over (N, V) logits, and its gradient in logits' dtype."""
    at_target = targets[:, None]
    log_p = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    loss = -log_p.gather(1, at_target).sum()
    gradient = log_p.exp_()
    gradient.scatter_add_(1, at_target, gradient.new_full(at_target.shape, -1.0))
    return loss, gradient.to(logits.dtype)


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, kernel: Kernel
    ) -> Tensor:
        dtype = matmul_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            loss, d_hidden, d_weight = _chunks(hidden.to(dtype), weight.to(dtype), targets, kernel)
        ctx.save_for_backward(d_hidden.to(hidden.dtype), d_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale.to(d_hidden.dtype), d_weight * scale, None, None


def _chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, kernel: Kernel
) -> tuple[Tensor, Tensor, Tensor]:
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    d_weight = torch.zeros_like(weight, dtype=torch.float32)
    size = chunk_length(weight)
    for start in range(0, hidden.shape[0], size):
        part = slice(start, start + size)
        chunk_loss, gradient = kernel(hidden[part] @ weight.T, targets[part])
        loss += chunk_loss
        d_hidden[part] = gradient @ weight
        d_weight += gradient.T @ hidden[part]
    return loss, d_hidden, d_weight


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, kernel: Kernel = softmax_and_gradient
) -> Tensor:
    """-Σ log p(target) over targets that are not -100; hidden (..., D), weight (V, D) → scalar.

    The sum, not the mean: the loop divides by a count that spans micro-batches and ranks.
    `kernel` is `softmax_and_gradient` or its compiled form.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    counted = targets != IGNORE
    if not bool(counted.all()):
        hidden, targets = hidden[counted], targets[counted]
    if not torch.is_grad_enabled():
        return -token_log_probs(hidden, weight, targets).sum()
    total: Tensor = _CrossEntropySum.apply(hidden, weight, targets, kernel)
    return total


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p(target) of each token: hidden (N, D), weight (V, D), targets (N) → float32 (N)."""
    size = chunk_length(weight)
    parts = [
        checkpoint(_log_probs, h, weight, t, use_reentrant=False)
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)
