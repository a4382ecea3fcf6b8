"""Collectives that gradients pass through, in the two meanings a replicated value can have.

Inside a tensor-parallel block each rank's gradient of a gathered value is a part of the whole, so
the backward of gathering adds the parts (`gather`). Outside, where every rank computes the same
from the same value, each rank's gradient is whole already and it keeps its own slice
(`gather_whole`, `sum_whole`). A group of None is a group of one: nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from llamaseek.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Group = dist.ProcessGroup | None
functional = torch.ops._c10d_functional


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup, parts: bool) -> Tensor:
        ctx.dim, ctx.group, ctx.parts = dim, group, parts
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        if ctx.parts:
            return reduce_scatter(gradient, ctx.dim, ctx.group), None, None, None
        own = gradient.chunk(ctx.group.size(), ctx.dim)[ctx.group.rank()]
        return own.contiguous(), None, None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return all_gather(gradient, ctx.dim, ctx.group), None, None


class _SumWhole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return all_to_all(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """Every rank's slice along `dim`, in rank order; gradients are parts, and added up."""
    return x if group is None else _Gather.apply(x, dim, group, True)  # type: ignore[no-any-return]


def gather_whole(x: Tensor, dim: int, group: Group) -> Tensor:
    """The same if all ranks continue equally: each keeps its own slice of the gradient."""
    return x if group is None else _Gather.apply(x, dim, group, False)  # type: ignore[no-any-return]


def scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    """The sum over ranks, of which each keeps its slice along `dim`."""
    return x if group is None else _Scatter.apply(x, dim, group)  # type: ignore[no-any-return]


def sum_whole(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks, with which all ranks continue equally."""
    return x if group is None else _SumWhole.apply(x, group)  # type: ignore[no-any-return]


def exchange(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    """Rows of x (N, …) to the ranks of the group, `sent[r]` of them to rank r."""
    if group is None:
        return x
    return _Exchange.apply(x, sent, received, group)  # type: ignore[no-any-return]


def all_gather(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Slices of all ranks beside each other along `dim`."""
    slices = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(slices, x.contiguous(), group=group)
    return slices if dim == 0 else torch.cat(slices.chunk(group.size()), dim)


def reduce_scatter(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """The own slice along `dim` of the sum."""
    parts = x.chunk(group.size(), dim)
    slices = x.contiguous() if dim == 0 else torch.cat(parts)
    # An operator that gives its result, so that recomputation can keep that (models/recompute.py).
    waiting = functional.reduce_scatter_tensor(slices, "sum", group.size(), group.group_name)
    own: Tensor = functional.wait_tensor(waiting)
    return own


def all_to_all(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """The rows that the ranks of the group sent here, in rank order."""
    # As above: what came from other ranks is not sent again.
    waiting = functional.all_to_all_single(x.contiguous(), received, sent, group.group_name)
    out: Tensor = functional.wait_tensor(waiting)
    return out


def split_over_ranks(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """`work` gives a result for each item. Items are split over the ranks; all get all results."""
    if not dist.is_initialized():
        return list(work(items))
    rank, world = dist.get_rank(), dist.get_world_size()
    found: list[Any] = [None] * world
    own = items[rank::world]
    dist.all_gather_object(found, list(work(own)) if own else [])
    return [found[number % world][number // world] for number in range(len(items))]


def own_ids(ids: Tensor, rows: int, rank: int) -> tuple[Tensor, Tensor]:
    """Which ids the `rows` rows of a rank hold, and where (0 for the others)."""
    place = ids - rank * rows
    inside = (place >= 0) & (place < rows)
    return inside, place.masked_fill(~inside, 0)


def on_first_rank(work: Callable[[], object]) -> None:
    """Do something on the first rank alone; every rank raises the `UserError` it ends in."""
    together, error = dist.is_initialized(), None
    if not together or dist.get_rank() == 0:
        try:
            work()
        except UserError as failed:
            error = str(failed)
    box = [error]
    if together:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    if box[0] is not None:
        raise UserError(box[0])
