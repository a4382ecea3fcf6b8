"""Tensors that are read a few rows at a time, so that none need be in memory whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 64 << 20  # bytes in float32 of the rows read at once


@dataclass(frozen=True)
class Lazy:
    """A tensor by its dtype, shape, and `rows(start, stop)`, which makes that range of rows.

    What `rows` gives may have another dtype; who stores it casts it. `mapped` is there where the
    whole tensor lies in a file as it is, and gives it without reading.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: Callable[[int, int], Tensor]
    mapped: Callable[[], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes once it is stored."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that together are all, each small; a scalar is one row."""
        count = self.shape[0] if self.shape else 1
        width = torch.Size(self.shape[1:]).numel() * 4
        # A multiple of 128 rows, so that no block of an fp8 matrix is cut.
        step = max(CHUNK // max(width, 1) // 128 * 128, 128)
        for start in range(0, count, step):
            yield start, min(start + step, count)

    def cast(self, dtype: torch.dtype) -> Lazy:
        """The same, to be stored in `dtype`."""
        return self if dtype == self.dtype else Lazy(dtype, self.shape, self.rows)

    def copy_to(self, target: Tensor) -> None:
        """Fill a tensor of the same shape, whatever its dtype and strides."""
        if not self.shape:
            target.copy_(self.rows(0, 1))
            return
        for start, stop in self.pieces():
            target[start:stop].copy_(self.rows(start, stop))


def lazy(tensor: Tensor) -> Lazy:
    """A tensor at hand, on any device, as a lazy one."""

    def rows(start: int, stop: int) -> Tensor:
        return tensor.detach() if not tensor.shape else tensor.detach()[start:stop]

    return Lazy(tensor.dtype, tuple(tensor.shape), rows)
