"""Products whose sums are kept in float32 though the weights are narrower.

M tokens, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

ROWS = 4096  # of a weight widened at once
TOKENS = 16  # from which oneDNN's product is the faster one


def float_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` without gradients, by oneDNN for many tokens in float32 on a CPU: MKL leaves half
    of an AMD processor's vector units unused. A token's numbers do not depend on those beside it.
    """
    plain = type(x) is Tensor and type(weight) in (Tensor, Parameter)
    fits = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    many = x.shape[:-1].numel() >= TOKENS
    known = torch.backends.mkldnn.is_available() and not torch.compiler.is_compiling()
    if not (plain and fits and many and known):
        return F.linear(x, weight)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) times weight (N, K) → (..., N) in at least float32, also under autocast.

    A weight in 16 bits is multiplied as it is where the device gives float32 sums, else widened
    `ROWS` rows at a time.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad):
            return F.linear(x.to(wide), weight.to(wide))
        if weight.dtype == wide:
            return float_product(x.to(wide), weight)
        if weight.is_cuda:
            flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
            out = torch.mm(flat, weight.T, out_dtype=wide)
            return out.view(*x.shape[:-1], -1)
        inner = x.to(wide)
        parts = [float_product(inner, rows.to(wide)) for rows in weight.split(ROWS)]
        return torch.cat(parts, -1)
