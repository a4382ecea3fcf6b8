"""Products whose sums are kept in float32 though the weights are narrower.

M tokens, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 4096  # of a weight widened at once


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) times weight (N, K) → (..., N) in at least float32, also under autocast.

    A weight in 16 bits is multiplied as it is where the device gives float32 sums, else widened
    `ROWS` rows at a time.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        if weight.dtype == wide or (torch.is_grad_enabled() and weight.requires_grad):
            return F.linear(x.to(wide), weight.to(wide))
        if weight.is_cuda:
            flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
            out = torch.mm(flat, weight.T, out_dtype=wide)
            return out.view(*x.shape[:-1], -1)
        return torch.cat([F.linear(x.to(wide), rows.to(wide)) for rows in weight.split(ROWS)], -1)
