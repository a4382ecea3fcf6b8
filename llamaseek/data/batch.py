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
        """The batch on a device; the host does not wait until it is on a GPU."""
        extra = {name: sent(tensor, device) for name, tensor in self.extra.items()}
        tokens, positions = sent(self.tokens, device), sent(self.positions, device)
        return Batch(tokens, positions, sent(self.targets, device), extra)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU it goes from pinned memory, beside what the host does next."""
    if device.type == "cuda" and not tensor.is_cuda and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
