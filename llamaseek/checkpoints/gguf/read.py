"""Tensors of a GGUF file as lazy ones: mapped, and widened a few rows at a time.

H heads, N rows, K columns, C latent rank, P qk_nope_head_dim, V v_head_dim.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from llamaseek.checkpoints.huge_pages import in_huge_pages
from llamaseek.errors import UserError
from llamaseek.gguf_header import GgufTensor
from llamaseek.herd.configs import ROUTING_BIAS
from llamaseek.herd.gguf_tensors import Placed
from llamaseek.models.lazy import Lazy

PLAIN = {
    GGMLQuantizationType.F32: (np.dtype("<f4"), torch.float32),
    GGMLQuantizationType.F16: (np.dtype("<f2"), torch.float16),
    GGMLQuantizationType.BF16: (np.dtype("<i2"), torch.bfloat16),
    GGMLQuantizationType.F64: (np.dtype("<f8"), torch.float64),
}
"""Types whose numbers are used as they lie in the file."""


@dataclass(frozen=True)
class Blocks:
    """A matrix (N, K) of quantized blocks as it lies in a file.

    `data` is uint8 (N, bytes of a row), mapped, and lies in `whole`, which has all experts' rows.
    Where rows of heads of `head` numbers alternate between their halves, `order` says where in
    `data` row n of the matrix lies.
    """

    kind: GGMLQuantizationType
    data: np.ndarray
    whole: np.ndarray
    head: int = 0
    order: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """That range of rows, widened to float32."""
        taken = slice(start, stop) if self.order is None else self.order[start:stop].numpy()
        return torch.from_numpy(dequantize(np.ascontiguousarray(self.data[taken]), self.kind))


def exact(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """A GGUF file's tensors in the dtypes of a folder with the same numbers.

    GGUF keeps norms and routers in float32 whatever the matrices are in. Where the matrices are in
    16 bits, and these hold a float32 tensor's numbers exactly, it is in 16 bits too.
    """
    matrices = Counter(t.dtype for t in tensors.values() if len(t.shape) > 1)
    dtype = matrices.most_common(1)[0][0]
    if dtype.itemsize >= torch.float32.itemsize:
        return tensors
    return {
        name: tensor.cast(dtype) if _holds(tensor, dtype, name) else tensor
        for name, tensor in tensors.items()
    }


def _holds(tensor: Lazy, dtype: torch.dtype, name: str) -> bool:
    """Whether `dtype` has every number of a float32 tensor; a routing bias stays float32."""
    if tensor.dtype != torch.float32 or name.endswith(ROUTING_BIAS):
        return False
    parts = (tensor.rows(start, stop) for start, stop in tensor.pieces())
    return all(torch.equal(part.to(dtype).float(), part) for part in parts)


@dataclass(frozen=True)
class GgufLazy(Lazy):
    """A lazy tensor of a GGUF file; `blocks` are there where it is a matrix of quantized ones."""

    blocks: Blocks | None = None


def open_placed(placed: dict[str, Placed]) -> dict[str, Lazy]:
    """The tensors of a checked header, mapped from their files, not read into memory."""
    paths = {part.path for place in placed.values() for part in place.parts}
    # Copied where they are written to, which is never: PyTorch wants tensors that could be.
    files = {path: np.memmap(path, np.uint8, mode="c").view(np.ndarray) for path in paths}
    for file in files.values():
        in_huge_pages(torch.from_numpy(file))
    return {name: _open(place, files) for name, place in placed.items()}


def _open(place: Placed, files: dict[Path, np.ndarray]) -> Lazy:
    mapped = [_mapped(part, files[part.path]) for part in place.parts]
    if len(mapped) == 2:
        return _joined(mapped[0], mapped[1], place.shape)
    if len(place.shape) == 1:
        return _vector(mapped[0])
    return _matrix(mapped[0], place.shape, place.first, place.heads)


@dataclass(frozen=True)
class Mapped:
    """A tensor and its bytes, mapped."""

    tensor: GgufTensor
    data: np.ndarray

    def plain(self) -> Tensor:
        """The numbers of one of the `PLAIN` types, as they lie in the file."""
        kind, dtype = PLAIN[self.tensor.kind]
        return torch.from_numpy(self.data.view(kind)).view(dtype).view(self.tensor.shape)


def _mapped(tensor: GgufTensor, file: np.ndarray) -> Mapped:
    _check_kind(tensor)
    return Mapped(tensor, file[tensor.offset : tensor.offset + tensor.nbytes])


def _check_kind(tensor: GgufTensor) -> None:
    """UserError for a type that the gguf package cannot widen."""
    if tensor.kind in PLAIN:
        return
    try:
        blank = np.zeros((1, tensor.row_bytes), np.uint8)
        dequantize(blank, tensor.kind)
    except NotImplementedError:
        raise UserError(
            f"{tensor.path}: {tensor.name} is {tensor.kind.name}, which cannot be widened"
        ) from None


def interleaved(rows: int, heads: int) -> Tensor:
    """Where each row of halves lies among rows that alternate between them, head by head."""
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).flatten()


def _matrix(mapped: Mapped, shape: tuple[int, ...], first: int, heads: int) -> Lazy:
    count, tensor = shape[0], mapped.tensor
    order = interleaved(count, heads) if heads else None
    if tensor.kind not in PLAIN:
        every = mapped.data.reshape(tensor.rows, tensor.row_bytes)
        head = count // heads if heads else 0
        blocks = Blocks(tensor.kind, every[first : first + count], every, head, order)
        return GgufLazy(torch.float32, tuple(shape), blocks.rows, blocks=blocks)
    whole = mapped.plain().view(tensor.rows, -1)[first : first + count]
    if order is None:
        return GgufLazy(whole.dtype, tuple(shape), lambda a, b: whole[a:b], lambda: whole)
    return GgufLazy(whole.dtype, tuple(shape), lambda a, b: whole[order[a:b]])


def _vector(mapped: Mapped) -> Lazy:
    kind = mapped.tensor.kind
    if kind in PLAIN:
        numbers = mapped.plain()
    else:
        numbers = torch.from_numpy(dequantize(mapped.data, kind)).flatten()
    return GgufLazy(numbers.dtype, mapped.tensor.shape, lambda a, b: numbers[a:b], lambda: numbers)


def _joined(keys: Mapped, values: Mapped, shape: tuple[int, ...]) -> Lazy:
    """`kv_b_proj` from keys (H, C, P), which are transposed, and values (H, V, C)."""
    heads, rank, nope = keys.tensor.shape
    value = values.tensor.shape[1]
    width = nope + value
    first = _matrix(keys, (heads * rank, nope), 0, 0)
    second = _matrix(values, (heads * value, rank), 0, 0)

    def head(index: int) -> Tensor:
        k = first.rows(index * rank, (index + 1) * rank)
        return torch.cat((k.T, second.rows(index * value, (index + 1) * value)))

    def rows(start: int, stop: int) -> Tensor:
        begin = start // width
        together = torch.cat([head(index) for index in range(begin, -(-stop // width))])
        return together[start - begin * width : stop - begin * width]

    return GgufLazy(torch.promote_types(first.dtype, second.dtype), tuple(shape), rows)
