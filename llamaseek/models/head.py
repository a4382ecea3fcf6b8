"""The output projection, and what a loss reads off it without keeping the logits.

B batch, T time, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.data.batch import IGNORE
from llamaseek.kernels.wide import wide_product
from llamaseek.models.layers import widen


@dataclass(frozen=True)
class Softmax:
    """The two things a loss needs of logits (N, V) and targets (N).

    `gradient` gives the sum of -log p(target) and its gradient by the logits, in their dtype;
    `log_probs` gives log p(target), (N) in at least float32, for autograd to follow.
    """

    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    log_probs: Callable[[Tensor, Tensor], Tensor]


def softmax_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p(target) over (N, V) logits, and its gradient in logits' dtype.

    A target of -100 adds nothing to the sum; what its row of the gradient holds is undefined.
    """
    at_target = targets.clamp(min=0)[:, None]
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = F.log_softmax(logits, dim=-1, dtype=wide)
    loss = -log_p.gather(1, at_target).masked_fill(targets[:, None] == IGNORE, 0).sum()
    gradient = log_p.exp_()
    gradient.scatter_add_(1, at_target, gradient.new_full(at_target.shape, -1.0))
    return loss, gradient.to(logits.dtype)


def log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target) over (N, V) logits: (N)."""
    logits = widen(logits)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)


WHOLE = Softmax(softmax_and_gradient, log_probs)


class Read(Protocol):
    """What a loss makes of hidden (B, T, D), the head's weight (V, D) and targets (B, T).

    Either a sum over all tokens or one number a token, (B, T), so that ranks that hold slices of
    the rows can put their results together. `softmax` is given where a rank holds a slice of V.
    """

    def __call__(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax | None = None
    ) -> Tensor:
        """The sum, or one number per token."""
        ...


class Head(nn.Linear):
    """D → V without bias. Losses go through `forward` too, so that wrappers see every use."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__(width, vocabulary, bias=False)

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, read: Read | None = None
    ) -> Tensor:
        """hidden (..., D) → logits (..., V) in at least float32, or what `read` makes of hidden and
        targets (B, T)."""
        if read is None or targets is None:
            return wide_product(hidden, self.weight)
        return read(hidden, self.weight, targets)


class Score(nn.Linear):
    """D → one number per token without bias, for rewards."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        super().__init__(width, 1, bias=False, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) → (...), in at least float32."""
        return one_number(self, hidden)


def one_number(head: nn.Linear, hidden: Tensor) -> Tensor:
    """hidden (..., D) → (...), in at least float32 whatever the weights of `head` are in."""
    bias = None if head.bias is None else widen(head.bias)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(widen(hidden), widen(head.weight), bias).squeeze(-1)
