"""Attention by Triton beside attention in PyTorch: interpreted on CPUs, or on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from llamaseek.engine.forward.paged import QuantizedStore
from llamaseek.kernels.paged import attend_paged
from llamaseek.models.cache import LayerShape
from tests.models.contiguous import attend_shared_heads

split = pytest.importorskip("llamaseek.kernels.split")
pytestmark = pytest.mark.usefixtures("products_of_bf16")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPREAD = [1, 17, 63]  # tokens of the sequences


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes the interpreter some milliseconds."""
    monkeypatch.setattr(split, "PROGRAMS", 24)


@dataclass
class Paged:
    """Random queries over random sequences in scattered blocks, with blocks to spare."""

    shape: LayerShape
    heads: int
    size: int = 16
    dtype: torch.dtype = torch.float32
    eight: bool = False
    lengths: tuple[int, ...] = tuple(SPREAD)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        count, blocks = len(self.lengths), -(-max(self.lengths) // self.size)
        total = count * blocks + 3
        self.tables = torch.randperm(total)[: count * blocks].view(count, blocks)
        shape, place = self.shape, torch.device("cpu")
        self.q = torch.randn(count, self.heads, shape.widths[0]).to(self.dtype)
        slots = total * self.size
        self.kept = [torch.randn(shape.heads, slots, w).to(self.dtype) for w in shape.widths]
        self.scales: list[Tensor] = []
        if self.eight:
            store = QuantizedStore(shape, total, self.size, self.dtype, place)
            store.write(torch.arange(slots), [part.transpose(0, 1)[None] for part in self.kept])
            self.kept, self.scales = store.kept, store.factors

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of the operator."""
        lengths = torch.tensor(self.lengths)
        width, scale = self.shape.value_width, self.q.shape[-1] ** -0.5
        return self.q, self.kept, self.scales, self.tables, lengths, self.size, width, scale

    def by_triton(self) -> Tensor:
        """The kernels' outcome."""
        from llamaseek.kernels.paged import on_cuda

        def there(part: Any) -> Any:
            if isinstance(part, list):
                return [there(one) for one in part]
            return part.to(DEVICE) if isinstance(part, Tensor) else part

        return on_cuda(*map(there, self.arguments)).cpu()

    def check(self) -> None:
        """The kernels against PyTorch: to rounding in float32, to a few bits of bf16."""
        found = self.by_triton()
        assert found.dtype == self.dtype
        wide = self.dtype == torch.float32
        tolerance = {"atol": 2e-6, "rtol": 1e-5} if wide else {"atol": 1e-2, "rtol": 2e-2}
        torch.testing.assert_close(found, attend_paged(*self.arguments), **tolerance)


def keys_and_values(groups: int, width: int) -> LayerShape:
    return LayerShape(groups, (width, width), width)


def latents(rank: int, rope: int) -> LayerShape:
    return LayerShape(1, (rank + rope,), rank)


@pytest.mark.parametrize("shared", [1, 2, 3, 4, 8])
def test_query_heads_share_cached_heads(shared: int) -> None:
    Paged(keys_and_values(2, 16), 2 * shared).check()


@pytest.mark.parametrize(("size", "width"), [(1, 8), (4, 80), (16, 64), (32, 128)])
def test_blocks_and_heads_of_any_size(size: int, width: int) -> None:
    Paged(keys_and_values(1, width), 2, size, lengths=(5, 33)).check()


@pytest.mark.parametrize(("rank", "rope", "heads"), [(16, 4, 3), (24, 8, 16), (512, 64, 20)])
def test_latents_of_any_rank(rank: int, rope: int, heads: int) -> None:
    Paged(latents(rank, rope), heads, lengths=(1, 40)).check()


@pytest.mark.parametrize("shape", [keys_and_values(2, 16), latents(32, 8)])
@pytest.mark.parametrize(
    ("dtype", "eight"), [(torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)]
)
def test_bf16_and_eight_bits(shape: LayerShape, dtype: torch.dtype, eight: bool) -> None:
    Paged(shape, 4, dtype=dtype, eight=eight, lengths=(1, 40)).check()


@pytest.mark.parametrize(("programs", "fewest"), [(4, 1), (32, 4)])
def test_stretches_of_many_steps_and_of_none(
    programs: int, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "PROGRAMS", programs)
    monkeypatch.setattr(split, "FEWEST", fewest)
    for shape in (keys_and_values(1, 16), latents(16, 8)):
        Paged(shape, 2, lengths=(300, 129)).check()


def test_the_plain_path_is_the_contiguous_caches() -> None:
    """The operator in PyTorch against `models.cache`, sequence by sequence."""
    for case in (Paged(keys_and_values(2, 16), 6), Paged(latents(16, 4), 3)):
        found = attend_paged(*case.arguments)
        for row, length in enumerate(case.lengths):
            places = torch.arange(length)
            slots = case.tables[row, places // case.size] * case.size + places % case.size
            keys, values = (case.kept[n][:, slots].transpose(0, 1)[None] for n in (0, -1))
            values = values[..., : case.shape.value_width]
            seen = torch.ones(1, 1, length, dtype=torch.bool)
            scale = case.q.shape[-1] ** -0.5
            wanted = attend_shared_heads(case.q[row][None, None], keys, values, seen, scale)
            torch.testing.assert_close(found[row], wanted[0, 0], atol=1e-6, rtol=1e-5)
