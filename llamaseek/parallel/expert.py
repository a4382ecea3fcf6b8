"""Routed experts over ranks: each token's row goes to the ranks of its experts and comes back.

Nothing is dropped: ranks exchange the numbers of rows, then send exactly those. Tensor
ranks split every expert's inner width instead. Router, bias and shared experts are everywhere;
a router sees its rank's own tokens, so loads and row means are sums over ranks.

N tokens, D width, E experts, K experts a token, R ranks of the expert group, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from llamaseek.models.moe import (
    Experts,
    MoE,
    add_rows,
    count_choices,
    run_experts,
    sort_gates,
    sorted_places,
    take_rows,
)
from llamaseek.models.quant.fp8 import FP8_MAX
from llamaseek.models.recompute import unneeded
from llamaseek.parallel.collectives import (
    Group,
    all_gather,
    all_to_all,
    exchange,
    gather,
    scatter,
    sum_whole,
)
from llamaseek.parallel.context import Slices
from llamaseek.parallel.layers import local
from llamaseek.parallel.mesh import Mesh
from llamaseek.parallel.tensor import split

GROUP = 128


def narrow(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, D) → e4m3 numbers (N, D), a group's largest over 224, and float32 scales (N, G)."""
    groups = x.unflatten(1, (-1, GROUP))
    most = groups.abs().amax(-1).to(torch.float32).clamp(min=1e-12)
    scale = (most / FP8_MAX).log2().ceil().exp2()
    numbers = groups / scale[:, :, None].to(x.dtype)
    return numbers.flatten(1).to(torch.float8_e4m3fn), scale


def widened(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The other way: (N, D) in `dtype`."""
    groups = numbers.to(dtype).unflatten(1, (-1, GROUP))
    return (groups * scale[:, :, None].to(dtype)).flatten(1)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        numbers, scale = narrow(x)
        # As bytes, which every backend sends.
        came = all_to_all(numbers.view(torch.uint8), sent, received, group)
        scales = all_to_all(scale, sent, received, group)
        return widened(came.view(torch.float8_e4m3fn), scales, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return all_to_all(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def exchange_in_fp8(
    x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    """`collectives.exchange` of rows (N, D), D a multiple of 128, rounded to fp8 on the way there.

    Their gradients come back in x's dtype, as if nothing had been rounded.
    """
    return _Dispatch.apply(x, sent, received, group)  # type: ignore[no-any-return]


class SplitExperts(Experts):
    """This rank's share of the experts, or of each expert's inner width, or of both."""

    expert: Group
    tensor: Group
    fp8: bool = False  # rows travel in fp8

    def dispatch(
        self, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        """Rows (N, D) to the ranks of their experts."""
        return (exchange_in_fp8 if self.fp8 else exchange)(x, sent, received, group)

    def combine(
        self, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        """Results back to where the rows came from."""
        with unneeded():
            return exchange(x, received, sent, group)

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor, load: Tensor) -> Tensor:
        """As `Experts.forward` for this rank's tokens, whose experts are anywhere."""
        if self.tensor is not None:
            x, gates = gather(x, 0, self.tensor), gather(gates, 0, self.tensor)
            chosen = all_gather(chosen, 0, self.tensor)
            load = count_choices(chosen, load.shape[0])
        weights = (local(self.gate_up_proj).flatten(1, 2), local(self.down_proj))
        if self.expert is None:
            out = run_experts(x, chosen, gates, load, *weights, self.product)
        else:
            out = self._elsewhere(x, chosen, gates, load, weights, self.expert)
        return scatter(out, 0, self.tensor)

    def _elsewhere(
        self,
        x: Tensor,
        chosen: Tensor,
        gates: Tensor,
        load: Tensor,
        weights: tuple[Tensor, Tensor],
        group: dist.ProcessGroup,
    ) -> Tensor:
        """Rows sorted by expert go out, come through the experts there, and are added up here."""
        tokens, places, _ = sorted_places(chosen, load)
        going = load.view(group.size(), -1)  # (R, E / R) rows for each expert of each rank
        ones = [1] * group.size()
        coming = all_to_all(going, ones, ones, group)  # (R, E / R) rows of each rank
        # The one time that the host waits for the device.
        sent, received = torch.stack((going.sum(1), coming.sum(1))).tolist()
        rows = self.dispatch(take_rows(x, tokens, places), sent, received, group)
        shares = exchange(sort_gates(gates, tokens, places), sent, received, group)
        experts = torch.arange(coming.shape[1], device=x.device).repeat(group.size())
        local_ids = experts.repeat_interleave(coming.flatten(), output_size=len(rows))
        load = coming.sum(0)
        out = run_experts(rows, local_ids[:, None], shares[:, None], load, *weights, self.product)
        return add_rows(self.combine(out, sent, received, group), tokens, places)


class SplitRows:
    """Rows that are split over ranks; columns from `time` on are padding, which does not count."""

    def __init__(self, slices: Slices, tensor: Group) -> None:
        self.slices, self.tensor = slices, tensor
        self.time: int | None = None

    def real(self, columns: int, device: torch.device) -> Tensor:
        """Which of this rank's `columns` of a row are not padding: bool."""
        ranks = self.tensor.size() if self.tensor else 1
        own = self.slices.columns(columns * ranks * self.slices.ranks, device)
        if self.tensor is not None:
            own = own.chunk(ranks)[self.tensor.rank()]
        return own < (self.time or columns * ranks * self.slices.ranks)


def spread_experts(layer: nn.Module, mesh: Mesh, rows: SplitRows, fp8: bool = False) -> None:
    """Put split experts in place of a layer's own, and means over whole rows. In place.

    With `fp8` rows travel to them in it.
    """
    moe = getattr(layer, "mlp", None)
    if not isinstance(moe, MoE):
        return
    if mesh.expert is not None or mesh.tensor is not None:
        moe.experts = split_experts(moe.experts, mesh)
        moe.experts.fp8 = fp8
    if mesh.slices is not None:
        moe.row_mean, moe.real = _mean_over(mesh.slices, rows), rows.real


def split_experts(experts: Experts, mesh: Mesh) -> SplitExperts:
    """This rank's experts, and of each its share of the inner width F."""
    count, _, hidden, width = experts.gate_up_proj.shape
    with torch.device("meta"):
        kept = SplitExperts(count, width, hidden)
    kept.expert, kept.tensor, kept.product = mesh.expert, mesh.tensor, experts.product
    kept.gate_up_proj = _share(experts.gate_up_proj, mesh, 2)
    kept.down_proj = _share(experts.down_proj, mesh, 2)
    return kept


def _share(parameter: nn.Parameter, mesh: Mesh, inner: int) -> nn.Parameter:
    """Experts along the first dimension, inner width along `inner`."""
    if mesh.experts is None:
        return split(parameter, mesh, inner)
    own, grid = parameter.data, mesh.experts["expert", "tensor"]
    for dim, name in ((0, "expert"), (inner, "tensor")):
        size, rank = grid.size(0 if name == "expert" else 1), grid.get_local_rank(name)
        own = own.chunk(size, dim)[rank]
    placements = [Shard(0), Shard(inner)]
    shared = DTensor.from_local(own.clone(), grid, placements, run_check=False)
    return nn.Parameter(shared, requires_grad=parameter.requires_grad)


def _mean_over(group: dist.ProcessGroup, rows: SplitRows) -> Callable[[Tensor], Tensor]:
    def row_mean(x: Tensor) -> Tensor:
        """(B, T / ranks, E) → (B, E): the mean over the whole row, padding apart."""
        real = rows.real(x.shape[1], x.device)[:, None]
        return sum_whole((x * real).sum(1), group) / (rows.time or x.shape[1] * group.size())

    return row_mean
