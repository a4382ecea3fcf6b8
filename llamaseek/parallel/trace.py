"""Counting what a rank does: products, attention, bytes moved, and what it sends to whom.

Works on fake tensors, so that a rank of any cluster can be counted on any machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from llamaseek.parallel.movement import Movement, sizes

aten, c10d = torch.ops.aten, torch.ops.c10d
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
class Work:
    """Of a stretch of a step on one rank. `sent` is by process group, in bytes that leave the
    rank once, and `calls` how many collectives that took.
    """

    product_flops: float = 0.0
    attention_flops: float = 0.0  # all keys; causality leaves half of them
    moved: float = 0.0  # bytes to and from memory of what is no product
    sent: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.product_flops + other.product_flops,
            self.attention_flops + other.attention_flops,
            self.moved + other.moved,
            self.sent + other.sent,
            self.calls + other.calls,
        )


class Counting(TorchDispatchMode):
    """Adds what runs under it to `work`."""

    def __init__(self, work: Work, movement: Movement) -> None:
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
def counted(movement: Movement) -> Iterator[Work]:
    """The work of what runs inside."""
    work = Work()
    with Counting(work, movement):
        yield work
