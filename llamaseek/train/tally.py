"""Sums of a step's loss terms over micro-batches and ranks, each divided by its global count."""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.parallel.ranks import Ranks
from llamaseek.train.objectives import Term


class Tally:
    """Adds up terms; `counts` holds each term's count over the whole step."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts
        self.means: dict[str, Tensor] = {}
        self.logged: dict[str, str] = {}
        self.loss = torch.zeros((), dtype=torch.float64)

    def add(self, terms: list[Term]) -> Tensor:
        """The loss of one micro-batch, to be differentiated."""
        means = [term.sum / max(self.counts[term.name], 1) for term in terms]
        loss = torch.stack(
            [term.weight * mean for term, mean in zip(terms, means, strict=True) if term.weight]
        ).sum()
        for term, mean in zip(terms, means, strict=True):
            seen = self.means.get(term.name, torch.zeros((), dtype=torch.float64))
            self.means[term.name] = seen.to(mean.device) + mean.detach()
            self.logged[term.name] = term.logged
        self.loss = self.loss.to(loss.device) + loss.detach()
        return loss

    def totals(self, ranks: Ranks) -> tuple[float, dict[str, float]]:
        """The whole run's loss, and each term's mean by name."""
        zero = torch.zeros((), dtype=torch.float64)
        parts = [self.loss, *(self.means.get(name, zero) for name in self.counts)]
        vector = torch.stack([part.to(ranks.device) for part in parts])
        loss, *means = ranks.counted(vector).tolist()
        return loss, dict(zip(self.counts, means, strict=True))
