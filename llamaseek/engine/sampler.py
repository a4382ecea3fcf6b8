"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llamaseek.errors import bad_value


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 is greedy; top_k 0 and top_p 1 keep everything."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise bad_value("temperature", self.temperature, "a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise bad_value("top_p", self.top_p, "a number above 0 and at most 1")
        if self.top_k < 0:
            raise bad_value("top_k", self.top_k, "0 (all) or a number of tokens")
        if self.max_tokens < 1:
            raise bad_value("max_tokens", self.max_tokens, "a number of at least 1")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """logits (B, V) → token ids (B)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens until they reach top_p together (Holtzman et al. 2020)."""
    ranked, order = probabilities.sort(-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    return torch.zeros_like(probabilities).scatter(1, order, ranked.masked_fill(before >= top_p, 0))
