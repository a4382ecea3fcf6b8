"""Few tokens times fewer bits by Triton, beside the widened weight; on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from llamaseek.kernels import packed
from llamaseek.kernels.fp8 import fp8_linear
from llamaseek.models.quant import rounding
from llamaseek.models.quant.fp8 import quantize

few = pytest.importorskip("llamaseek.kernels.few")
fp8_few = pytest.importorskip("llamaseek.kernels.fp8_few")
packed_few = pytest.importorskip("llamaseek.kernels.packed_few")
pytestmark = pytest.mark.usefixtures("products_of_bf16")
MULTIPROCESSORS = 132  # of an H100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "dtype"),
    [
        (1, 128, 64, torch.float32),
        (5, 200, 150, torch.float32),
        (33, 64, 300, torch.bfloat16),
        (16, 300, 17, torch.bfloat16),
    ],
)
def test_fp8_blocks(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    size = torch.rand(outputs, 1) * 10  # so that blocks have scales of their own
    weight, scale = quantize(torch.randn(outputs, inputs) * size)
    x = torch.randn(tokens, inputs).to(dtype)
    found = fp8_few.multiply(*(part.to(DEVICE) for part in (x, weight, scale))).cpu()
    wanted = fp8_linear(x.double(), weight, scale)
    assert found.dtype == dtype
    error = (found - wanted).norm() / wanted.norm()
    assert error < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "bits", "group", "dtype"),
    [
        (1, 128, 64, 4, 32, torch.float32),
        (5, 512, 45, 4, 256, torch.float32),
        (2, 288, 40, 4, 32, torch.float32),
        (2, 320, 40, 8, 64, torch.bfloat16),
        (3, 200, 40, 4, 0, torch.float32),
        (33, 256, 70, 8, 128, torch.bfloat16),
        (16, 72, 17, 8, 0, torch.bfloat16),
    ],
)
def test_packed_words(
    tokens: int, inputs: int, outputs: int, bits: int, group: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    words, scales = rounding.quantize(torch.randn(outputs, inputs), bits, group)
    x = torch.randn(tokens, inputs).to(dtype)
    found = packed_few.multiply(*(part.to(DEVICE) for part in (x, words, scales)), bits).cpu()
    wanted = x.double() @ packed.dequantize_packed(words, scales, bits, torch.float64).T
    # Groups smaller than a step are scaled in bf16, which the interpreter rounds down.
    most = 5e-3 if 0 < group < 128 and dtype == torch.bfloat16 else 1e-6
    error = (found - wanted).norm() / wanted.norm()
    assert found.dtype == torch.float32 and error < most


@pytest.mark.parametrize("step", [32, 64, 128])
@pytest.mark.parametrize("inputs", [2048, 4096, 14336])
def test_a_thousand_outputs_fill_all_multiprocessors(inputs: int, step: int) -> None:
    parts, each = few.parts(inputs, 1024, step)
    assert parts * 1024 // few.OUTPUTS >= MULTIPROCESSORS
    assert each % step == 0 and (parts - 1) * each < inputs <= parts * each


def test_wide_weights_are_not_cut() -> None:
    assert few.parts(4096, 32768, 128) == (1, 4096)


def test_a_tokens_numbers_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    words, scales = (part.to(DEVICE) for part in rounding.quantize(torch.randn(40, 512), 4, 64))
    x = torch.randn(16, 512, device=DEVICE)
    whole = packed_few.multiply(x, words, scales, 4)
    assert torch.equal(packed_few.multiply(x[:1].contiguous(), words, scales, 4), whole[:1])
