"""DeepSeek-V3's fp8 products beside a loop over single numbers, and what they cost in precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamaseek.models.moe import grouped_product as plain_grouped_product
from llamaseek.models.quant import fp8_training as block_scaled
from llamaseek.models.quant.fp8_training import (
    BlockScaledLinear,
    grouped_product,
    in_blocks,
    in_tiles,
    multiplies_tiles,
    product,
)

Doubles = NDArray[np.float64]


def e4m3(value: float) -> float:
    """The nearest number of four exponent and three mantissa bits, ties to even."""
    if value == 0:
        return 0.0
    exponent = max(math.frexp(abs(value))[1] - 1, -6)
    step = 2.0 ** (exponent - 3)
    return math.copysign(min(round(abs(value) / step) * step, 448.0), value)


def blocks(shape: tuple[int, int], rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """The blocks of a matrix, the last ones smaller."""
    for i in range(0, shape[0], rows):
        for j in range(0, shape[1], columns):
            yield slice(i, i + rows), slice(j, j + columns)


def rounded(x: Doubles, rows: int, columns: int) -> Doubles:
    """Every number of x as e4m3 × its block's scale, one by one."""
    out = np.zeros_like(x)
    for block in blocks(x.shape, rows, columns):
        part = x[block].astype(np.float32)
        scale = np.float32(np.abs(part).max()) / np.float32(448)
        made = [e4m3(float(value / scale)) * float(scale) for value in part.flat]
        out[block] = np.reshape(made, part.shape)
    return out


def close(ours: Tensor, wanted: Doubles, terms: Doubles) -> bool:
    """Within float32's rounding of sums whose terms' magnitudes add up to `terms`."""
    return bool((np.abs(ours.double().numpy() - wanted) <= 2e-6 * terms + 1e-12).all())


def operands(tokens: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, ...]:
    """x, W and dy of uneven magnitudes."""
    torch.manual_seed(seed)
    x = torch.randn(tokens, inputs) * torch.randn(tokens, 1).exp()
    x[0, 5] = 300.0
    return x, torch.randn(outputs, inputs) * 0.05, torch.randn(tokens, outputs) * 1e-3


def linear(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dW of our layer."""
    layer = BlockScaledLinear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight.clone())
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(gradient)
    assert x.grad is not None and layer.weight.grad is not None
    return y.detach(), x.grad, layer.weight.grad


def test_the_three_products_are_the_loop_s() -> None:
    x, weight, gradient = operands(131, 200, 140)
    y, dx, dw = linear(x, weight, gradient)
    a, w, g = (t.double().numpy() for t in (x, weight, gradient))
    tiled, block, rows = rounded(a, 1, 128), rounded(w, 128, 128), rounded(g, 1, 128)
    assert close(y, tiled @ block.T, np.abs(tiled) @ np.abs(block).T)
    assert close(dx, rows @ block, np.abs(rows) @ np.abs(block))
    left, right = rounded(g, 128, 1), rounded(tiled, 128, 1)  # the kept tiles, tiled again
    assert close(dw, left.T @ right, np.abs(left).T @ np.abs(right))


def test_errors_stay_within_the_format_s() -> None:
    """A number is off by a sixteenth at most, or by half of the smallest step of its tile."""
    x, weight, gradient = operands(256, 512, 256, seed=1)
    for made, wanted, bound in (
        (linear(x, weight, gradient)[0], x @ weight.T, x.abs() @ weight.abs().T),
        (linear(x, weight, gradient)[1], gradient @ weight, gradient.abs() @ weight.abs()),
    ):
        assert ((made - wanted).abs() <= 0.14 * bound + 1e-9).all()
        assert (made - wanted).norm() < 0.045 * wanted.norm()


def test_an_outlier_costs_its_own_tile_alone() -> None:
    """The report's reason for tiles: under one scale for all, the small numbers vanish."""
    torch.manual_seed(2)
    x = torch.randn(4, 256) * 1e-3
    x[0, 0] = 1e4
    found = in_tiles(x).dense()[:4, :256]
    other = torch.ones_like(x, dtype=torch.bool)
    other[0, :128] = False
    assert ((found - x)[other].abs() <= x[other].abs() / 16 + 1e-8).all()
    scale = x.abs().max() / 448
    whole = (x / scale).to(torch.float8_e4m3fn).float() * scale
    assert (whole[other] == 0).all()


def test_scales_survive_zeros_and_tell_of_what_is_no_number() -> None:
    assert (in_tiles(torch.zeros(3, 130)).dense() == 0).all()
    assert (in_blocks(torch.zeros(130, 3)).dense() == 0).all()
    broken = torch.ones(1, 128)
    broken[0, 7] = math.inf
    assert not in_tiles(broken).dense().isfinite().all()


@pytest.mark.parametrize("sizes", [[130, 0, 5, 128], [0, 1, 0, 0]])
def test_experts_products_are_those_of_each_alone(sizes: list[int]) -> None:
    torch.manual_seed(3)
    x, weights = torch.randn(sum(sizes), 72), torch.randn(len(sizes), 40, 72)
    ends = torch.tensor(sizes).cumsum(0, dtype=torch.int32)
    gradient = torch.randn(sum(sizes), 40)
    x.requires_grad_()
    weights.requires_grad_()
    made = grouped_product(x, weights, ends)
    made.backward(gradient)
    assert x.grad is not None and weights.grad is not None
    start = 0
    for group, end in enumerate(ends.tolist()):
        rows, start = slice(start, end), end
        if rows.start == rows.stop:
            assert (weights.grad[group] == 0).all()
            continue
        y, dx, dw = linear(x.detach()[rows], weights.detach()[group], gradient[rows])
        for ours, wanted in ((made[rows], y), (x.grad[rows], dx), (weights.grad[group], dw)):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_products_come_out_as_autocast_asks() -> None:
    x, weight, gradient = operands(8, 128, 128)
    layer = BlockScaledLinear(128, 128, bias=False)
    layer.weight = torch.nn.Parameter(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        ends = torch.tensor([8], dtype=torch.int32)
        assert grouped_product(x, weight[None], ends).dtype == torch.bfloat16
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x).bfloat16())  # rounded once, at the end
    y.backward(gradient.bfloat16())
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_the_kernel_is_asked_for_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and strides as cuBLAS documents them, checked by PyTorch's own meta function."""
    seen = []
    true = torch.nn.functional.scaled_mm

    def recorded(*args: Any, **options: Any) -> Tensor:
        scales = args[2], args[4]
        seen.append(tuple(x for each in scales for x in (tuple(each.shape), each.stride())))
        return true(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_mm", recorded)
    monkeypatch.setattr(block_scaled, "multiplies_tiles", lambda device: True)
    x, weight = torch.empty(130, 700, device="meta"), torch.empty(300, 700, device="meta")
    assert product(in_tiles(x), in_blocks(weight), torch.bfloat16).shape == (130, 300)
    assert product(in_tiles(x), in_tiles(weight), torch.float32).shape == (130, 300)
    blocks_taken, tiles_taken = seen
    assert blocks_taken == ((256, 6), (1, 256), (8, 3), (1, 8))
    assert tiles_taken == ((256, 6), (1, 256), (384, 6), (1, 384))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_hopper_s_products_are_the_emulated_ones() -> None:
    device = torch.device("cuda")
    if not multiplies_tiles(device):
        pytest.skip("needs a Hopper GPU and CUDA 12.9")
    x, weight, gradient = operands(200, 576, 320)
    wanted = linear(x, weight, gradient)
    for dtype, within in ((torch.float32, 1e-3), (torch.bfloat16, 1e-2)):
        moved = (x.to(device, dtype), weight.to(device), gradient.to(device, dtype))
        for ours, right in zip(linear(*moved), wanted, strict=True):
            assert (ours.cpu().float() - right).norm() <= within * right.norm()


def test_plain_experts_are_near() -> None:
    torch.manual_seed(4)
    x, weights = torch.randn(64, 128), torch.randn(2, 128, 128)
    ends = torch.tensor([30, 64], dtype=torch.int32)
    wanted = plain_grouped_product(x, weights, ends)
    assert (grouped_product(x, weights, ends) - wanted).norm() < 0.045 * wanted.norm()
