"""Kernels and fallbacks compute what plain products do; packed weights survive the round trip."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llamaseek.kernels import blocks, build
from llamaseek.kernels.blocks import KINDS
from llamaseek.kernels.packed import dequantize_packed, pack, unpack
from llamaseek.models.quant.rounding import quantize
from tests.kernels import check


@pytest.fixture(scope="module")
def kernels() -> build.Builder:
    builder = build.builder()
    if not builder.build():
        pytest.skip(builder.reason)
    return builder


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 5, 64), dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (3, 5, 64 * bits // 32)
    assert torch.equal(unpack(words, bits), codes)
    lowest = codes[0, 0, : 32 // bits].tolist()
    assert int(words[0, 0, 0]) & 0xFFFFFFFF == sum(c << bits * i for i, c in enumerate(lowest))


@pytest.mark.parametrize(("bits", "group", "most"), [(8, 0, 0.01), (4, 32, 0.1), (4, 128, 0.12)])
def test_quantized_weights_are_near(bits: int, group: int, most: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 256)
    weight[3] = 0  # a row of zeros has a scale too
    words, scales = quantize(weight, bits, group)
    assert scales.shape == (16, 256 // group if group else 1)
    back = dequantize_packed(words, scales, bits, torch.float32)
    assert check.relative(back, weight) < most and not back[3].any()


class TestFallbacks:
    """The same checks on what runs where no kernel does; those round nothing to 8 bits."""

    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        monkeypatch.setattr(check, "KERNELS", check.ops)

    def test_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check, "KERNELS", blocks)
        check.check_blocks("Q4_1")
        check.check_blocks("Q6_K")

    @pytest.mark.parametrize("form", check.FORMS, ids=str)
    def test_products(self, form: tuple[int, int]) -> None:
        check.check_linear(*form)
        check.check_experts(*form)

    def test_the_rest(self) -> None:
        check.check_bf16_activations()
        check.check_heads()
        check.check_norm()
        check.check_attend()
        check.check_attend_in_a_row()


class TestKernels:
    @pytest.mark.parametrize("group", [0, 128])
    def test_one_large_number(self, kernels: build.Builder, group: int) -> None:
        torch.manual_seed(0)
        check.check_one_large_number(group)

    @pytest.mark.parametrize("kind", KINDS)
    def test_blocks(self, kernels: build.Builder, kind: str) -> None:
        torch.manual_seed(0)
        check.check_blocks(kind)

    def test_largest_codes(self, kernels: build.Builder) -> None:
        check.check_largest_codes()

    @pytest.mark.parametrize("form", check.FORMS, ids=str)
    def test_products(self, kernels: build.Builder, form: tuple[int, int]) -> None:
        torch.manual_seed(0)
        check.check_linear(*form)
        check.check_alone(*form)
        check.check_experts(*form)

    @pytest.mark.parametrize("form", [form for form in check.FORMS if form[0] < 16], ids=str)
    def test_prompts(self, kernels: build.Builder, form: tuple[int, int]) -> None:
        torch.manual_seed(0)
        check.check_prompt(*form)

    def test_the_rest(self, kernels: build.Builder) -> None:
        torch.manual_seed(0)
        check.check_bf16_activations()
        check.check_heads()
        check.check_norm()
        check.check_route()
        check.check_attend()
        check.check_attend_in_a_row()
        check.check_rotations()

    def test_avx2(self, kernels: build.Builder) -> None:
        command = [sys.executable, "-m", "tests.kernels.check"]
        env = {**os.environ, "LLAMASEEK_KERNELS": "avx2"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    def test_a_token_is_the_same_beside_others(self, kernels: build.Builder) -> None:
        """Greedy answers do not depend on the batch because sums are taken in one order."""
        x, weight = torch.randn(4, 256), torch.randn(32, 256).bfloat16()
        linear = torch.ops.llamaseek.linear
        both = linear(x, None, 0.0, [weight], [], 16, None, False)
        twice = linear(torch.cat((x, x, x)), None, 0.0, [weight], [], 16, None, False)
        assert torch.equal(both, twice[4:8])


def test_compilers_see_the_shapes() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(3, 64), torch.empty(10, 64)
        linear = torch.ops.llamaseek.linear
        assert linear(x, None, 0.0, [weight, weight], [], 32, None, False).shape == (3, 20)
        assert linear(x, None, 0.0, [weight, weight], [], 32, None, True).shape == (3, 10)
        keys, q = torch.empty(1, 32, 40), torch.empty(3, 8, 40)
        tables = torch.empty(3, 2, dtype=torch.int64)
        found = torch.ops.llamaseek.attend(q, keys, keys[..., :24], tables, tables[:, 0], 16, 0.1)
        assert found.shape == (3, 8, 24)


def test_where_nothing_can_be_built_the_fallbacks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError("no compiler\nand more")

    monkeypatch.setattr(build, "compiled", fails)
    builder = build.Builder()
    assert not builder.build() and not builder.ready
    if build.supported():
        assert builder.reason == "no compiler"
