"""GPTQ: weights rounded one input at a time, each error made up for by the inputs not yet rounded
(Frantar et al. 2022, arXiv:2210.17323).

N rows, K inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.models.quant.rounding import TINY, codes_of, packed_scales

DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to the diagonal
AT_ONCE = 128  # inputs whose corrections to all later ones are applied together


def gptq(weight: Tensor, hessian: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """weight (N, K) float32 and the sum of x xᵀ (K, K) over its inputs → codes (N, K) from
    -2^(bits - 1), and bf16 scales (N, K / group).

    Scales are found first, each number's error weighing as its input's mean square. Inputs are then
    rounded from the largest to the smallest (the authors' `act_order` with static groups).
    """
    most, order = 2 ** (bits - 1), hessian.diagonal().argsort(descending=True)
    energy, inverse = inverse_root(hessian[order][:, order])
    weights = energy[order.argsort()].unflatten(0, (-1, group))
    stored = packed_scales(weight.unflatten(1, (-1, group)), bits, weights)[..., 0]
    scales = stored.float().repeat_interleave(group, 1)[:, order]
    left, codes = weight[:, order], torch.empty_like(weight)
    for start in range(0, left.shape[1], AT_ONCE):
        stop = min(start + AT_ONCE, left.shape[1])
        errors = torch.empty(len(left), stop - start)
        for at in range(start, stop):
            scale = scales[:, at : at + 1]
            code = codes_of(left[:, at : at + 1], scale, most)
            error = (left[:, at : at + 1] - code * scale) / inverse[at, at]
            left[:, at:stop] -= error * inverse[at, at:stop]
            codes[:, order[at]], errors[:, at - start] = code[:, 0], error[:, 0]
        left[:, stop:] -= errors @ inverse[start:stop, stop:]
    return codes, stored


def inverse_root(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal (K) of the damped matrix, and the upper triangular U (K, K) with Uᵀ U its
    inverse.

    In float64, and with more damping where that is not enough: one input of a layer may be a
    million times as large as the others.
    """
    damping = DAMPING * float(hessian.diagonal().mean()) + TINY
    unit = torch.eye(len(hessian), dtype=torch.float64)
    while True:
        matrix = hessian.double() + damping * unit
        root, failed = torch.linalg.cholesky_ex(matrix)
        upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
        if not failed and not failed_too:
            return matrix.diagonal().to(hessian.dtype), upper.to(hessian.dtype)
        damping *= 10
