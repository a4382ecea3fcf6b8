"""The heads of latent attention, by either of its two ways (DeepSeek-V2 §2.1).

The up-projections make keys and values of the latents, which is less work where many queries see
the same ones. Or they move into the query and the output, so that one latent serves all heads.

N tokens, S cached tokens, H heads, C latent rank, R rotary width, P qk_nope_head_dim, V v_head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

EXPANDED = 1 << 28  # numbers of keys and values that are made at once


class LatentHeads(NamedTuple):
    """Up-projections of keys (H, P, C) and of values (H, V, C)."""

    keys: Tensor
    values: Tensor

    def absorbed(
        self, q_nope: Tensor, q_rope: Tensor, attend: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """q_nope (1, N, H, P) and q_rope (1, N, H, R) → (1, N, H, V). `attend` takes queries
        (1, N, H, C + R) over latents to (1, N, H, C).
        """
        q = torch.cat((torch.einsum("bthp,hpc->bthc", q_nope, self.keys), q_rope), dim=-1)
        return torch.einsum("bthc,hvc->bthv", attend(q), self.values)

    def expanded(self, latents: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """latents (S, C + R) → some heads h, their keys (S, h, P + R) and values (S, h, V); as many
        at once as memory allows.
        """
        heads, nope, rank = self.keys.shape
        latent, rotary = latents.split((rank, latents.shape[-1] - rank), dim=-1)
        wide = len(latents) * (nope + rotary.shape[-1] + self.values.shape[1])
        step = min(max(EXPANDED // wide, 1), heads)
        for start in range(0, heads, step):
            some = slice(start, start + step)
            nope_keys = torch.einsum("sc,hpc->shp", latent, self.keys[some])
            turned = rotary[:, None].expand(-1, nope_keys.shape[1], -1)
            values = torch.einsum("sc,hvc->shv", latent, self.values[some])
            yield some, torch.cat((nope_keys, turned), dim=-1), values
