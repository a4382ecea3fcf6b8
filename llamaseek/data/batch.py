"""What the training loop eats: rows of tokens, where each document begins, and what to predict.

B rows, T time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """tokens, positions, targets: int64 (B, T). Positions restart at 0 at each document.

    Targets are already shifted; -100 has no loss. `extra` holds what an objective adds, one row
    of the tensor for each row of the batch.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most `rows` rows."""
        for start in range(0, self.tokens.shape[0], rows):
            yield self.select(slice(start, start + rows))

    def select(self, rows: slice | Tensor) -> Batch:
        """The batch of these rows alone."""
        extra = {name: tensor[rows] for name, tensor in self.extra.items()}
        return Batch(self.tokens[rows], self.positions[rows], self.targets[rows], extra)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        extra = {name: tensor.to(device) for name, tensor in self.extra.items()}
        tokens, positions = self.tokens.to(device), self.positions.to(device)
        return Batch(tokens, positions, self.targets.to(device), extra)
