"""Shared parts of policy objectives: log-probabilities of sampled answers, and their entropy.

B rows (one answer each), T time, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.data.batch import IGNORE, Batch
from llamaseek.models import CausalLM
from llamaseek.models.head import WHOLE, Softmax
from llamaseek.models.layers import widen
from llamaseek.models.loss import chunk_length, token_log_probs


def sampled_log_probs(
    model: CausalLM, batch: Batch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log p of every target at the temperature it was drawn at, and the entropy there: (B, T).

    Both are 0 where there is no target. The entropy is without gradient.
    """
    return log_probs_of(model, model(batch.tokens, batch.positions), batch.targets, temperature)


def log_probs_of(
    model: CausalLM, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The same from hidden (B, T, D) and targets (B, T)."""
    entropies: list[Tensor] = []

    def read(h: Tensor, weight: Tensor, t: Tensor, softmax: Softmax | None = None) -> Tensor:
        valid = t != IGNORE
        log_p = token_log_probs(h[valid], weight, t[valid], softmax or WHOLE)
        # Where a rank holds a slice of V, -log p of what was drawn estimates the entropy.
        entropy = -log_p.detach() if softmax else token_entropies(h[valid], weight)
        blank = torch.zeros(t.shape, device=h.device, dtype=log_p.dtype)
        entropies.append(blank.masked_scatter(valid, entropy.to(log_p.dtype)))
        return blank.masked_scatter(valid, log_p)

    log_p: Tensor = model.lm_head(hidden / temperature, targets, read)
    return log_p, entropies[0]


@torch.no_grad()
def token_entropies(hidden: Tensor, weight: Tensor) -> Tensor:
    """-Σ p log p of each token: hidden (N, D), weight (V, D) → (N)."""
    parts = []
    for part in hidden.split(chunk_length(weight)):
        log_p = widen(torch.nn.functional.linear(part, weight)).log_softmax(-1)
        parts.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(parts) if parts else widen(hidden.new_zeros(0))


def k3(log_ratio: Tensor) -> Tensor:
    """An estimate of KL(π‖π_ref) from log π_ref - log π: e^x - x - 1 (Schulman 2020)."""
    return log_ratio.exp() - log_ratio - 1
