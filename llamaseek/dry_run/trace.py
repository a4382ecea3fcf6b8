"""Counting what a rank does: products, attention, bytes moved, and what it sends to whom.

Works on fake tensors, so that a rank of any cluster can be counted on any machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten, c10d = torch.ops.aten, torch.ops.c10d

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
    """Whether torch.compile makes one kernel of it and its neighbors."""
    if func._schema.is_mutable:
        return False
    return torch.Tag.pointwise in func.tags or func._overloadpacket in FUSED | CONSTANT


def sizes(found: Iterable[Tensor]) -> int:
    """Memory of tensors' numbers; those that are one number spread out count as they look."""
    return sum(t.numel() * t.itemsize for t in found)


def tensors(found: Any) -> list[Tensor]:
    """The tensors in an operator's arguments or results."""
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


GATHERS = {c10d._allgather_base_.default, c10d._reduce_scatter_base_.default}
# What the counter of torch does not know. Grouped products pair every row with one group; the CPU's
# fused attention pads values to the keys' width, and its products are what it is given.
FLOPS: dict[Any, Callable[..., float]] = {
    **flop_registry,
    aten._grouped_mm: lambda a, b, *rest, **kw: 2.0 * a.shape[-2] * a.shape[-1] * b.shape[-1],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **kw: _attention(
        q.shape, k.shape, v.shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, q, k, v, *rest, **kw: 2.5 * _attention(q.shape, k.shape, v.shape)
    ),
}
functional = torch.ops._c10d_functional
SCATTER, EXCHANGE = functional.reduce_scatter_tensor.default, functional.all_to_all_single.default
COLLECTIVES = GATHERS | {SCATTER, EXCHANGE, c10d.allreduce_.default}


@dataclass
class TracedWork:
    """Of a stretch of a step on one rank. `sent` is by process group, in bytes that leave the
    rank once, and `calls` how many collectives that took.
    """

    product_flops: float = 0.0
    attention_flops: float = 0.0  # all keys; causality leaves half of them
    moved: float = 0.0  # bytes to and from memory of what is no product
    sent: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: TracedWork) -> TracedWork:
        return TracedWork(
            self.product_flops + other.product_flops,
            self.attention_flops + other.attention_flops,
            self.moved + other.moved,
            self.sent + other.sent,
            self.calls + other.calls,
        )


class Counting(TorchDispatchMode):
    """Adds what runs under it to `work`."""

    def __init__(self, work: TracedWork, movement: Movement) -> None:
        super().__init__()
        self.work, self.movement = work, movement

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it will be back as what happens to the rank's own numbers
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in COLLECTIVES:
            self.work.moved += self.movement.product(args, out)
            self._collective(func, args)
        elif func._overloadpacket in FLOPS:
            self.work.moved += self.movement.product(args, out)
            flops = float(FLOPS[func._overloadpacket](*args, **kwargs, out_val=out))
            if "attention" in func._overloadpacket.__name__:
                self.work.attention_flops += flops
            else:
                self.work.product_flops += flops
        else:
            self.work.moved += self.movement.plain(func, (args, kwargs), out)
        return out

    def _collective(self, func: Any, args: Any) -> None:
        if func == SCATTER:
            self._sends(args[3], sizes([args[0]]), args[2])
            return
        if func == EXCHANGE:
            # By its own name: the ranks may be those of another group as well.
            self._sends("exchange", sizes([args[0]]), len(args[1]))
            return
        group = next(ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject))
        if func in GATHERS:
            whole = args[0] if func == c10d._allgather_base_.default else args[1]
            size = sizes([whole])
        else:
            size = 2 * sizes(args[0])  # all-reduce: scattered, then gathered
        self._sends(group.group_name, size, group.size())

    def _sends(self, group: str, size: int, ranks: int) -> None:
        self.work.sent[group] += int(size * (ranks - 1) / ranks)
        self.work.calls[group] += 1


def _attention(q: torch.Size, k: torch.Size, v: torch.Size) -> float:
    """Both products of q (B, H, T, W), k (B, K, S, W) and v (B, K, S, V), all keys."""
    return 2.0 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


@contextmanager
def counted(movement: Movement) -> Iterator[TracedWork]:
    """The work of what runs inside."""
    work = TracedWork()
    with Counting(work, movement):
        yield work
