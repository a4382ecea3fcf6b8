"""What a rank receives from others in a step, counted as it happens.

Counting sees every collective of torch.distributed, FSDP's and the pipeline's included. Of a
collective over n ranks a rank receives (n - 1)/n of what is gathered or scattered, and twice that
of what is added up, as the ring algorithms do it.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Within it, `received` counts bytes by collective; `calls` how often each was called."""

    def __init__(self) -> None:
        super().__init__()
        self.received: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops._c10d_functional.reduce_scatter_tensor.default:
            self._add("reduce_scatter", (args[2] - 1) / args[2] * size(args[0]))
        elif func is torch.ops._c10d_functional.all_to_all_single.default:
            self._add("all_to_all", (len(args[1]) - 1) / len(args[1]) * sum(args[1]) * row(args[0]))
        elif func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::").strip("_"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        boxed = [a for a in args if isinstance(a, torch.ScriptObject)]
        (group,) = [a for a in boxed if "ProcessGroup" in str(a._type())]  # type: ignore[attr-defined]
        ranks = torch.distributed.ProcessGroup.unbox(group).size()
        share = (ranks - 1) / ranks
        if name.startswith("allreduce"):
            self._add("all_reduce", 2 * share * size(args[0]))
        elif name.startswith(("_allgather_base", "allgather", "all_gather")):
            self._add("all_gather", share * size(args[0]))
        elif name.startswith(("_reduce_scatter_base", "reduce_scatter")):
            self._add("reduce_scatter", share * size(args[1]))
        elif name.startswith("broadcast"):
            self._add("broadcast", share * size(args[0]))
        elif name.startswith("recv"):
            self._add("receive", size(args[0]))

    def _add(self, name: str, received: float) -> None:
        self.calls[name] += 1
        self.received[name] += round(received)


def row(x: Tensor) -> int:
    """Bytes of one of its rows."""
    return prod(x.shape[1:]) * x.element_size()


def size(value: Any) -> int:
    """Bytes of a tensor or of a list of them."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(size(item) for item in value) if isinstance(value, (list, tuple)) else 0
