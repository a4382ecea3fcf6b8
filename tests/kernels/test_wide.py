"""Products with float32 sums: right for any layout, with gradients, and the same beside others."""

from __future__ import annotations

import pytest
import torch

from llamaseek.kernels.wide import TOKENS, wide_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, TOKENS - 1, TOKENS, 70])
def test_sums_are_in_float32(dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5000, 96).to(dtype)
    for x in (torch.randn(tokens, 96), torch.randn(96, 2, tokens).permute(2, 1, 0)):
        x = x.to(dtype)
        with torch.no_grad():
            found = wide_product(x, weight)
        wanted = x.double() @ weight.double().T
        assert found.dtype == torch.float32 and found.shape == wanted.shape
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def test_transposed_weights_and_rows_beside_others() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(200, 64), torch.randn(64, 300).T
    found = wide_product(x, weight)
    assert float((found - x @ weight.T).abs().max()) < 1e-4
    for count in (TOKENS, 33, 150):
        assert torch.equal(wide_product(x[7 : 7 + count], weight), found[7 : 7 + count])


def test_gradients_reach_inputs_and_weights() -> None:
    x = torch.randn(40, 8, requires_grad=True)
    frozen, weight = torch.randn(6, 8), torch.randn(6, 8, requires_grad=True)
    (wide_product(x, frozen).sum() + wide_product(x, weight).sum()).backward()
    assert x.grad is not None and weight.grad is not None
    assert torch.allclose(x.grad, (frozen + weight.detach()).sum(0).expand(40, -1), atol=1e-5)
