"""Bytes that go to and from a GPU's memory beside those of products, which their rates include.

Run operation by operation, each reads what it is given and writes what it makes. Compiled,
pointwise operations and reductions between two products become one kernel, as torch.compile fuses
them: it reads each tensor from before once, and writes only what something else reads later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
FREE = {  # allocations, waiting, and views by another name
    torch.ops._c10d_functional.wait_tensor.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten._unsafe_view.default,
    aten.lift_fresh.default,
}
FUSED = {  # besides what torch tags as pointwise
    aten._to_copy,
    aten.clone,
    aten.sum,
    aten.mean,
    aten.amax,
    aten._softmax,
    aten._softmax_backward_data,
    aten._log_softmax,
    aten.slice_backward,
    aten.constant_pad_nd,
}
CONSTANT = {  # written without reading anything
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.zeros,
    aten.ones,
    aten.full,
    aten.arange,
}


class Movement:
    """Follows a stretch of work; each call gives the bytes that an operation moves."""

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.kernel = 0  # the number of the fused kernel that is being collected
        self.pending: dict[int, int] = {}  # storages not written yet → the kernel that makes them
        self.read: set[int] = set()  # storages that this kernel has read already
        # Weak references, so that no other storage gets the address of one that is gone.
        self.known: dict[int, StorageWeakRef] = {}

    def plain(self, func: Any, args: Any, out: Any) -> int:
        """An operation that is no product and sends nothing."""
        made = tensors(out)
        if func.is_view or func in FREE or not made:
            return 0
        given = [] if func._overloadpacket in CONSTANT else tensors(args)
        if self.compiled and fuses(func):
            size = sum(self._reads(tensor) for tensor in given)
            self.pending.update((self._storage(tensor), self.kernel) for tensor in made)
            return size
        return self.product(given, made) + sizes(given) + sizes(made)

    def product(self, args: Any, out: Any) -> int:
        """What a product, or anything else outside fused kernels, needs to be in memory."""
        self.kernel += 1
        self.read.clear()
        written = sum(self._written(tensor) for tensor in tensors(args))
        for tensor in tensors(out):  # in memory now, maybe where something was that never came
            self.pending.pop(self._storage(tensor), None)
        return written

    def _reads(self, tensor: Tensor) -> int:
        """By the fused kernel: nothing of what it makes itself, everything else once."""
        key = self._storage(tensor)
        if key in self.read or self.pending.get(key) == self.kernel:
            return 0
        written = self._written(tensor)
        self.read.add(key)
        return written + sizes([tensor])

    def _storage(self, tensor: Tensor) -> int:
        """The same for all views of the same memory."""
        found = tensor.untyped_storage()
        if found._cdata not in self.known:
            self.known[found._cdata] = StorageWeakRef(found)
        return int(found._cdata)

    def _written(self, tensor: Tensor) -> int:
        """By the kernel that made it, if it was not written before."""
        return sizes([tensor]) if self.pending.pop(self._storage(tensor), None) is not None else 0


def fuses(func: Any) -> bool:
    """Whether torch.compile makes one kernel of it and its neighbours."""
    if func._schema.is_mutable:
        return False
    return torch.Tag.pointwise in func.tags or func._overloadpacket in FUSED | CONSTANT


def sizes(found: Iterable[Tensor]) -> int:
    """Memory of tensors' numbers; those that are one number spread out count as they look."""
    return sum(t.numel() * t.itemsize for t in found)


def tensors(found: Any) -> list[Tensor]:
    """The tensors in an operator's arguments or results."""
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
