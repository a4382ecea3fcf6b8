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

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.models.head import WHOLE, Head, Softmax, softmax_and_gradient
from llamaseek.models.layers import matmul_dtype, widen
from llamaseek.plan.memory import CHUNK_NUMBERS

Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TILE = 128  # rows of a GPU's matrix products that are made at once


def chunk_length(weight: Tensor, device: str | None = None) -> int:
    """Tokens a chunk for a head of weight (V, D) on its own or another device, at least 64; on a
    GPU whole tiles.
    """
    kind = device or weight.device.type
    length = max(CHUNK_NUMBERS.get(kind, 2**23) // weight.shape[0], 64)
    return length if kind == "cpu" or length < TILE else length // TILE * TILE


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, kernel: Kernel, size: int
    ) -> Tensor:
        dtype = matmul_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = hidden.to(dtype), weight.to(dtype)
            loss, d_hidden, d_weight = _chunks(*narrow, targets, kernel, size)
            if _ignores(hidden):
                d_hidden = d_hidden.masked_fill_((targets == IGNORE)[:, None], 0)
        ctx.save_for_backward(d_hidden.to(hidden.dtype), d_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        d_hidden, d_weight = ctx.saved_tensors
        # Not in place: a zero-bubble schedule asks for the two gradients one after the other.
        return d_hidden * scale.to(d_hidden.dtype), d_weight * scale, None, None, None


def _chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, kernel: Kernel, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(weight.dtype, torch.float32)
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    d_weight = torch.zeros_like(weight, dtype=wide)
    for start in range(0, hidden.shape[0], size):
        part = slice(start, start + size)
        chunk_loss, gradient = kernel(hidden[part] @ weight.T, targets[part])
        loss += chunk_loss
        d_hidden[part] = gradient @ weight
        d_weight += gradient.T @ hidden[part]
    return loss, d_hidden, d_weight


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    kernel: Kernel = softmax_and_gradient,
    softmax: Softmax | None = None,
) -> Tensor:
    """-Σ log p(target) over targets that are not -100; hidden (..., D), weight (V, D) → scalar.

    The sum, not the mean: the loop divides by a count that spans micro-batches and ranks.
    `kernel` is `softmax_and_gradient` or its compiled form.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    counted = targets != IGNORE
    if _ignores(hidden):
        hidden = hidden.masked_fill(~counted[:, None], 0)
    elif not bool(counted.all()):
        hidden, targets = hidden[counted], targets[counted]
    if not torch.is_grad_enabled():
        return -token_log_probs(hidden, weight, targets, softmax or WHOLE).sum()
    return counted_cross_entropy_sum(hidden, weight, targets, kernel)


def _ignores(x: Tensor) -> bool:
    """Whether tokens without a target are computed and set to zero, as on GPUs: to leave them
    out, the host would have to wait for how many there are.
    """
    return x.device.type != "cpu"


def counted_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    kernel: Kernel = softmax_and_gradient,
    device: str | None = None,
) -> Tensor:
    """The same where every target counts: hidden (N, D), targets (N), with gradients.

    `device` makes chunks as large as that kind of device wants them.
    """
    size = chunk_length(weight, device)
    total: Tensor = _CrossEntropySum.apply(hidden, weight, targets, kernel, size)
    return total


def token_log_probs(
    hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax = WHOLE
) -> Tensor:
    """log p(target) of each token, 0 where there is no target: hidden (N, D), weight (V, D),
    targets (N) → (N), float32 or wider.
    """
    size = chunk_length(weight)
    parts = [
        checkpoint(_log_probs, h, weight, t, softmax, use_reentrant=False)
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    log_p = torch.cat(parts) if parts else widen(hidden.new_zeros(0))
    return log_p.masked_fill(targets == IGNORE, 0) if _ignores(hidden) else log_p


def _log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax) -> Tensor:
    return softmax.log_probs(F.linear(hidden, weight), targets.clamp(min=0))


def next_token_loss(
    head: Head, hidden: Tensor, targets: Tensor, kernel: Kernel = softmax_and_gradient
) -> Tensor:
    """`cross_entropy_sum` through a model's head: hidden (B, T, D), targets (B, T) → scalar."""

    def read(h: Tensor, weight: Tensor, t: Tensor, softmax: Softmax | None = None) -> Tensor:
        return cross_entropy_sum(h, weight, t, softmax.gradient if softmax else kernel, softmax)

    loss: Tensor = head(hidden, targets, read)
    return loss


def row_log_probs(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p of every target through a model's head, 0 where there is none: (B, T)."""

    def read(h: Tensor, weight: Tensor, t: Tensor, softmax: Softmax | None = None) -> Tensor:
        if _ignores(h):
            log_p = token_log_probs(h.flatten(0, -2), weight, t.flatten(), softmax or WHOLE)
            return log_p.view_as(t)
        valid = t != IGNORE
        log_p = token_log_probs(h[valid], weight, t[valid], softmax or WHOLE)
        return torch.zeros(t.shape, device=h.device, dtype=log_p.dtype).masked_scatter(valid, log_p)

    log_p: Tensor = head(hidden, targets, read)
    return log_p


def target_log_probs(model: CausalLM, batch: Batch) -> Tensor:
    """log p of every target, 0 where there is none: (B, T)."""
    hidden = model(batch.tokens, batch.positions)
    return row_log_probs(model.lm_head, hidden, batch.targets)


def sum_by_sequence(log_p: Tensor, batch: Batch) -> Tensor:
    """Summed log-probability of each answer, of the tokens that count for it: (B, S)."""
    sequence = batch.extra["sequence"].clamp(min=0)
    slots = 2 * batch.extra["pairs"].shape[1]
    kept = log_p * (batch.extra["counts_for_preference"] > 0)
    return log_p.new_zeros(log_p.shape[0], slots).scatter_add(1, sequence, kept)
