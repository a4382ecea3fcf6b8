"""GPTQ's and AWQ's matrices as plain ones, or as the blocks that the kernels multiply by.

N rows, K inputs, G groups of a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from llamaseek.checkpoints.gguf.read import Blocks, GgufLazy
from llamaseek.errors import UserError
from llamaseek.files import is_gguf, read_json_object
from llamaseek.herd.grouped import (
    AWQ_ORDER,
    BIAS,
    ORDER,
    PER_WORD,
    QWEIGHT,
    QZEROS,
    SCALES,
)
from llamaseek.kernels.packed import unpack
from llamaseek.models.lazy import Lazy

EXPERT = re.compile(r"\.experts\.\d+\.")
BLOCK, MIDDLE = 32, 8  # numbers of a block; the zero point of a symmetric matrix
NATURAL = torch.tensor(AWQ_ORDER).argsort()


@dataclass(frozen=True)
class Grouped:
    """A matrix (N, K) of 4 bits with scales and zero points, in its file."""

    qweight: Lazy
    qzeros: Lazy
    scales: Lazy
    awq: bool
    less: int
    """What the stored zero points lack."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        across, down = self.qweight.shape
        return (down * PER_WORD, across) if self.awq else (down, across * PER_WORD)

    def codes(self, start: int, stop: int) -> Tensor:
        """Codes of rows start to stop: (n, K) uint8."""
        if self.awq:
            return self._by_output(self.qweight, start, stop)
        return unpack(_all(self.qweight)[:, start:stop].T, 4)

    def zeros(self, start: int, stop: int) -> Tensor:
        """Zero points of these rows: (n, G) uint8."""
        return self._by_output(self.qzeros, start, stop) + self.less

    def scale(self, start: int, stop: int) -> Tensor:
        """Scales of these rows: (n, G) float32."""
        return _all(self.scales)[:, start:stop].T.float()

    def dense(self, start: int, stop: int) -> Tensor:
        """These rows of the matrix: (n, K) float32."""
        return self._in_groups(self._offsets(start, stop).float(), start, stop)

    def _offsets(self, start: int, stop: int) -> Tensor:
        """Codes less their zero points: (n, K) int16."""
        zeros, codes = self.zeros(start, stop), self.codes(start, stop)
        grouped = codes.unflatten(1, (zeros.shape[1], -1)).to(torch.int16)
        return (grouped - zeros[:, :, None].to(torch.int16)).flatten(1)

    def _in_groups(self, codes: Tensor, start: int, stop: int) -> Tensor:
        scale = self.scale(start, stop)
        return (codes.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).flatten(1)

    def _by_output(self, words: Lazy, start: int, stop: int) -> Tensor:
        """Codes of words (A, N / 8) that hold eight outputs each: (n, A)."""
        first = start // PER_WORD
        some = unpack(_all(words)[:, first : -(-stop // PER_WORD)], 4)
        if self.awq:
            some = some.unflatten(1, (-1, PER_WORD))[..., NATURAL].flatten(1)
        return some[:, start - first * PER_WORD : stop - first * PER_WORD].T.contiguous()

    @property
    def has_blocks(self) -> bool:
        """Whether groups are whole blocks, and scales numbers of 16 bits as blocks have them."""
        groups, scale = self.scales.shape[0], self.scale(0, self.shape[0])
        return self.shape[1] % (groups * BLOCK) == 0 and bool((scale.half() == scale).all())

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle of the codes."""
        return bool((self.zeros(0, self.shape[0]) == MIDDLE).all())

    def blocks(self, kind: GGMLQuantizationType) -> np.ndarray:
        """The same numbers as blocks of Q4_0, where it is symmetric, or of Q8_0, which have codes
        less their zero points: uint8 (N, bytes of a row)."""
        rows, inputs = self.shape
        scale = self.scale(0, rows).half()
        scale = scale.repeat_interleave(inputs // BLOCK // scale.shape[1], 1)[..., None]
        if kind == GGMLQuantizationType.Q4_0:
            low, high = self.codes(0, rows).unflatten(1, (-1, 2, BLOCK // 2)).unbind(2)
            codes = low | high << 4
        else:
            codes = self._offsets(0, rows).to(torch.int8).unflatten(1, (-1, BLOCK))
            codes = codes.view(torch.uint8)
        return torch.cat((scale.view(torch.uint8), codes), -1).flatten(1).numpy()


@dataclass(frozen=True)
class GroupedLazy(Lazy):
    """A matrix as plain float32 numbers, made from codes as they are read."""

    grouped: Grouped | None = None


def ungrouped(tensors: dict[str, Lazy], folder: Path) -> dict[str, Lazy]:
    """A folder's tensors with GPTQ's and AWQ's as matrices `…weight`; others as they are.

    UserError for a folder whose inputs are in another order (act-order), or that has biases.
    """
    bases = [name.removesuffix(QWEIGHT) for name in tensors if name.endswith(QWEIGHT)]
    if not bases or is_gguf(folder):
        return tensors
    quantized = read_json_object(folder / "config.json").get("quantization_config") or {}
    found = dict(tensors)
    for base in bases:
        words, zeros, scales = (found.pop(base + suffix) for suffix in (QWEIGHT, QZEROS, SCALES))
        _check_rest(found.pop(base + ORDER, None), found.pop(base + BIAS, None), scales, base)
        grouped = Grouped(words, zeros, scales, *_layout(quantized))
        found[f"{base}.weight"] = GroupedLazy(
            torch.float32, grouped.shape, grouped.dense, grouped=grouped
        )
    return found


def in_blocks(tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The same with matrices of 4 bits as GGUF's blocks, where their groups are whole blocks.

    All experts of a layer lie in one array, as in a GGUF file.
    """
    found = dict(tensors)
    together: dict[str, dict[str, Grouped]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, GroupedLazy) and tensor.grouped is not None:
            together.setdefault(EXPERT.sub(".experts.", name), {})[name] = tensor.grouped
    for parts in together.values():
        if not all(grouped.has_blocks for grouped in parts.values()):
            continue
        few = all(grouped.symmetric for grouped in parts.values())
        kind = GGMLQuantizationType.Q4_0 if few else GGMLQuantizationType.Q8_0
        each = [grouped.blocks(kind) for grouped in parts.values()]
        whole = np.concatenate(each)
        first = 0
        for name, data in zip(parts, each, strict=True):
            blocks = Blocks(kind, whole[first : first + len(data)], whole)
            found[name] = GgufLazy(torch.float32, parts[name].shape, blocks.rows, blocks=blocks)
            first += len(data)
    return found


def _layout(quantized: Mapping[str, Any]) -> tuple[bool, int]:
    """Whether it is AWQ's, and what the stored zero points lack."""
    awq = quantized.get("quant_method") == "awq"
    version = quantized.get("checkpoint_format", quantized.get("format", "gptq"))
    return awq, int(not awq and version == "gptq")


def _check_rest(order: Lazy | None, bias: Lazy | None, scales: Lazy, base: str) -> None:
    if order is not None:
        inputs, groups = order.shape[0], scales.shape[0]
        plain = torch.arange(inputs) // (inputs // groups)
        if not torch.equal(_all(order).long(), plain):
            raise UserError(f"{base}{ORDER}: is an order of its own (desc_act), which is not read")
    if bias is not None and bool(_all(bias).any()):
        raise UserError(f"{base}{BIAS}: is not zero; read are layers without biases")


def _all(tensor: Lazy) -> Tensor:
    return tensor.rows(0, tensor.shape[0])
