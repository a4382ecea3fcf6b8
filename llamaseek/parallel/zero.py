"""ZeRO-1: each data rank keeps the moments of some weights, steps them, and sends them round.

Rajbhandari et al. 2020, §5.1. Whole weights are dealt out, the largest first, each to the rank
with the least so far; weights spread over expert ranks are dealt among their own copies.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from llamaseek.parallel.collectives import Group
from llamaseek.parallel.mesh import Mesh
from llamaseek.parallel.weights import Weight, buckets


class Zero:
    """Who steps which weight."""

    def __init__(self, weights: list[Weight], mesh: Mesh) -> None:
        by_group: dict[Group, list[Weight]] = {}
        for weight in weights:
            spread = weight.group is mesh.expert_copies  # None: this rank alone has these experts
            by_group.setdefault(mesh.expert_copies if spread else mesh.data, []).append(weight)
        self.dealt = [
            (group, deal(some, group.size())) for group, some in by_group.items() if group
        ]
        self.alone = by_group.get(None, [])

    def mine(self) -> list[Weight]:
        """What this rank's optimizer steps."""
        dealt = [hand for group, hands in self.dealt for hand in hands[group.rank()]]
        return [*self.alone, *dealt]

    @torch.no_grad()
    def share(self) -> None:
        """After a step: every rank gets what the others have stepped."""
        for group, hands in self.dealt:
            for owner, hand in enumerate(hands):
                stepped = [w.own.data for w in hand if w.own.requires_grad]
                for bucket in buckets(stepped):
                    flat = torch.cat([tensor.flatten() for tensor in bucket])
                    dist.broadcast(flat, group=group, group_src=owner)
                    parts = flat.split([tensor.numel() for tensor in bucket])
                    for tensor, part in zip(bucket, parts, strict=True):
                        tensor.copy_(part.view_as(tensor))


def deal(weights: list[Weight], ranks: int) -> list[list[Weight]]:
    """Weights by rank, so that each rank has about the same number of numbers."""
    hands: list[list[Weight]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for weight in sorted(weights, key=lambda w: -w.own.numel()):
        rank = held.index(min(held))
        hands[rank].append(weight)
        held[rank] += weight.own.numel()
    return hands
