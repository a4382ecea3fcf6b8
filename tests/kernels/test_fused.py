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
    weight = torch.randn(1100)
    ours = KERNELS.narrow_norm(gate, weight, 1e-5)
    assert torch.allclose(ours, ops.narrow_norm(gate, weight, 1e-5), atol=1e-5)
    assert KERNELS.narrow_norm(gate, weight.bfloat16(), 1e-5).dtype == torch.bfloat16
    q, k = torch.randn(3, 20, 12), torch.randn(3, 5, 16)[..., 4:]
    turns = torch.randn(3, 6), torch.randn(3, 6)
    for kind in (True, False):
        both = zip(KERNELS.rotate_both(q, k, *turns, kind), ops.rotate_both(q, k, *turns, kind),
                   strict=True)  # fmt: skip
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in both)
    x = torch.randn(6, 19, 30)[..., 6:]
    cos, sin = torch.randn(6, 12), torch.randn(6, 12)
    for kind in (True, False):
        for back in (True, False):
            found = KERNELS.rotate(x, cos, sin, kind, back)
            assert torch.allclose(found, ops.rotate(x, cos, sin, kind, back), atol=1e-6)


@pytest.mark.parametrize("widths", [(12, 8), (20,)])
def test_new_tokens_are_kept_at_their_slots(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    new = [torch.randn(5, 3, width + 4)[..., 4:] for width in widths]
    slots = torch.tensor([9, 2, 30, 31, 0])
    ours, plain = ([torch.zeros(3, 32, width) for width in widths] for _ in range(2))
    KERNELS.store(new, slots, ours)
    torch.ops.llamaseek.store(new, slots, plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert torch.equal(ours[0][1, 30], new[0][2, 1])
