"""SwiGLU and rotary embeddings in one pass: Triton, interpreted on CPUs, beside plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llamaseek.kernels.fused import Rotate, SwiGLU
from llamaseek.models.rope import rotate_halves, rotate_interleaved

KERNELS = pytest.importorskip("llamaseek.kernels.fused_triton")


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("form", [rotate_halves, rotate_interleaved])
def test_rotations_have_the_values_and_gradients_of_the_plain_formula(form: object) -> None:
    (x,) = leaves((2, 5, 3, 12))
    cos, sin = torch.randn(2, 5, 1, 6), torch.randn(2, 5, 1, 6)
    found = Rotate.apply(x, cos, sin, form is rotate_interleaved)
    wanted = form(x, cos, sin)  # type: ignore[operator]
    weight = torch.randn_like(wanted)
    ours, plain = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (found, wanted))
    assert torch.allclose(found, wanted, atol=1e-6) and torch.allclose(ours, plain, atol=1e-6)


def test_swiglu_has_the_values_and_gradients_of_the_plain_formula() -> None:
    gate, up = leaves((3, 4, 20), (3, 4, 20))
    found, wanted = SwiGLU.apply(gate, up), F.silu(gate) * up
    weight = torch.randn_like(wanted)
    ours, plain = (torch.autograd.grad((out * weight).sum(), (gate, up)) for out in (found, wanted))
    assert torch.allclose(found, wanted, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, plain, strict=True))


def test_kernels_compute_what_the_fallbacks_do() -> None:
    ops = torch.ops.llamaseek
    both = torch.randn(7, 2 * 1100)
    gate, up = both.chunk(2, dim=1)  # rows further apart than they are wide
    gradient = torch.randn(7, 1100)
    assert torch.allclose(KERNELS.swiglu(gate, up), ops.swiglu(gate, up), atol=1e-6)
    ours, plain = (f(gradient, gate, up) for f in (KERNELS.swiglu_backward, ops.swiglu_backward))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, plain, strict=True))
    x = torch.randn(6, 19, 30)[..., 6:]
    cos, sin = torch.randn(6, 12), torch.randn(6, 12)
    for kind in (True, False):
        for back in (True, False):
            found = KERNELS.rotate(x, cos, sin, kind, back)
            assert torch.allclose(found, ops.rotate(x, cos, sin, kind, back), atol=1e-6)
