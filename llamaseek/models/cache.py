"""What attention asks of a cache; the engine's are `engine/forward/paged.py`.

B batch, T new tokens, H query heads, K cached heads, W cached width, C latent rank, R rotary
width, P and V widths of a latent head's keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llamaseek.models.latent import LatentHeads


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps a token: `heads` × `widths[i]` numbers in its i-th tensor.

    Grouped-query attention keeps keys and values; latent attention keeps one tensor whose first
    `value_width` numbers serve as values too.
    """

    heads: int
    widths: tuple[int, ...]
    value_width: int

    @property
    def numbers_per_token(self) -> int:
        """How many numbers the layer stores for each token."""
        return self.heads * sum(self.widths)


class Cache(Protocol):
    """What attention needs of a cache, however it is laid out."""

    def attend(
        self, layer: int, q: Tensor, new: tuple[Tensor, ...], positions: Tensor, scale: float
    ) -> Tensor:
        """Store `new` (each B, T, K, W) at `positions` (B, T), then attend causally.

        q (B, T, H, W) → (B, T, H, value width). H is a multiple of K.
        """
        ...

    def attend_latent(
        self,
        layer: int,
        q: tuple[Tensor, Tensor],
        new: Tensor,
        heads: LatentHeads,
        positions: Tensor,
        scale: float,
    ) -> Tensor:
        """The same of latents `new` (B, T, 1, C + R), for q (B, T, H, P) and (B, T, H, R) to
        (B, T, H, V).
        """
        return heads.absorbed(*q, lambda x: self.attend(layer, x, (new,), positions, scale))
