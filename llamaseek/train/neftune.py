"""Noise on embeddings while fine-tuning (NEFTune, Jain et al. 2023).

Each embedded row gets uniform noise in ±α / √(T D). B rows, T time, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llamaseek.models import CausalLM


def add_noise(model: CausalLM, alpha: float) -> None:
    """From now on embeddings are noisy while the model trains, and plain while it does not."""

    def noisy(module: Any, inputs: Any, out: Tensor) -> Tensor:
        if not (model.training and torch.is_grad_enabled()):
            return out
        most = alpha / (out.shape[-2] * out.shape[-1]) ** 0.5
        return out + torch.empty_like(out).uniform_(-most, most)

    model.model.embed_tokens.register_forward_hook(noisy)
