"""GPTQ and the searches for scales, against plain formulas and exhaustive searches."""

from __future__ import annotations

import torch
from torch import Tensor

from llamaseek.models.quant.gptq import DAMPING, gptq
from llamaseek.models.quant.rounding import codes_of, packed_scales, symmetric_scales


def product_error(weight: Tensor, rounded: Tensor, x: Tensor) -> float:
    return float(((rounded - weight) @ x.T).norm() / (weight @ x.T).norm())


def correlated(rows: int, inputs: int) -> Tensor:
    """Inputs of which some are large and all depend on a few."""
    return (torch.randn(rows, 12) @ torch.randn(12, inputs) + 0.3 * torch.randn(rows, inputs)) * (
        torch.rand(inputs) * 3
    )


def by_gptq(weight: Tensor, x: Tensor) -> Tensor:
    codes, scales = gptq(weight, x.T @ x, 4, 32)
    return (codes.unflatten(1, (-1, 32)) * scales.float()[..., None]).flatten(1)


def plainly(weight: Tensor) -> Tensor:
    groups = weight.unflatten(1, (-1, 32))
    scale = packed_scales(groups, 4).float()
    return (codes_of(groups, scale, 8) * scale).flatten(1)


def one_by_one(weight: Tensor, hessian: Tensor, scales: Tensor) -> Tensor:
    """The paper's equations 2 and 3 as they stand, the largest input first: after each input its
    row and column leave the inverse of the Hessian, in float64."""
    left = weight.double().clone()
    damping = DAMPING * hessian.diagonal().mean()
    inverse = (hessian + torch.eye(len(hessian)) * damping).double().inverse()
    rounded = torch.empty_like(left)
    for at in hessian.diagonal().argsort(descending=True).tolist():
        scale = scales[:, at // (left.shape[1] // scales.shape[1])].double()
        rounded[:, at] = codes_of(left[:, at], scale, 8) * scale
        error = (left[:, at] - rounded[:, at]) / inverse[at, at]
        left -= error[:, None] * inverse[at]
        inverse -= torch.outer(inverse[:, at], inverse[at]) / inverse[at, at]
    return rounded


def test_gptq_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(24, 160), correlated(400, 160)
    codes, scales = gptq(weight, x.T @ x, 4, 32)
    found = (codes.unflatten(1, (-1, 32)) * scales.float()[..., None]).flatten(1)
    wanted = one_by_one(weight, x.T @ x, scales.float())
    assert codes.min() >= -8 and codes.max() <= 7
    assert (found - wanted).abs().gt(1e-4).float().mean() < 0.01  # near halves go either way


def test_gptq_halves_the_error_of_products() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(24, 160), correlated(400, 160)
    assert product_error(weight, by_gptq(weight, x), x) < 0.5 * product_error(
        weight, plainly(weight), x
    )


def test_inputs_that_are_always_zero_are_rounded_too() -> None:
    """An expert that no token of the text chose."""
    weight = torch.randn(8, 64)
    codes, scales = gptq(weight, torch.zeros(64, 64), 4, 32)
    plain = packed_scales(weight.unflatten(1, (-1, 32)), 4)[..., 0]
    assert torch.equal(scales, plain) and codes.isfinite().all()


def test_two_inputs_that_dwarf_the_others_and_are_one() -> None:
    """As with the channels of a real model's first token; float32 cannot factorize that."""
    torch.manual_seed(0)
    weight, x = torch.randn(8, 64), torch.randn(200, 64)
    x[:, 7] *= 1e5
    x[:, 9] = x[:, 7]
    found = by_gptq(weight, x)
    assert product_error(weight, found, x) < product_error(weight, plainly(weight), x)


def test_scales_are_near_the_best_of_many() -> None:
    """The search's error is within 3% of that of 400 scales of either sign, in the mean."""
    torch.manual_seed(0)
    groups = torch.randn(200, 32)
    scale = symmetric_scales(groups, 8, trials=7)
    found = (codes_of(groups, scale, 8) * scale - groups).square().sum(1)
    largest = groups.abs().amax(1, keepdim=True)
    tried = [sign * largest / near for near in torch.linspace(6, 12, 200) for sign in (1, -1)]
    errors = [(codes_of(groups, s, 8) * s - groups).square().sum(1) for s in tried]
    best = torch.stack(errors).amin(0)
    assert found.mean() < 1.03 * best.mean()
