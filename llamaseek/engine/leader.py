"""A model that is split over ranks: rank 0 schedules and samples, all ranks compute.

Rank 0's engine is the ordinary one. Before each forward, and each reading of the head, its runner
sends the others its inputs; they compute the same on their shards, with caches of the same blocks.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llamaseek.checkpoints.sources import ADAPTER
from llamaseek.engine.forward.paged import PagedCache, build_cache
from llamaseek.engine.forward.runner import Runner, home
from llamaseek.engine.forward.step_layout import Inputs, Ints
from llamaseek.engine.ranks.tensor_group import TensorGroup, joined
from llamaseek.errors import UserError, bad_value
from llamaseek.herd.folder import read_config, stored_tensors
from llamaseek.models import CausalLM
from llamaseek.runtime.world import started_ranks


@dataclass(frozen=True)
class CacheBlocks:
    """The cache that every rank allocates: `count` blocks of `size` tokens."""

    count: int
    size: int
    dtype: str

    def cache(self, model: CausalLM) -> PagedCache:
        """This rank's."""
        dtype, device = home(model)
        shapes = model.cache_shapes()
        return build_cache(shapes, self.count, self.size, dtype, self.dtype, device)


@dataclass(frozen=True)
class ForwardWork:
    """What comes next: a forward on `inputs`, or without any a reading of the head.

    `rows` of hidden states follow, unless it is None.
    """

    inputs: Inputs | None
    rows: int | None


class Leader(Runner):
    """Rank 0's runner. Once a forward has failed, ranks may be out of step, and none is run."""

    def __init__(
        self, group: TensorGroup, model: CausalLM, cache: PagedCache, tables: Ints, size: int
    ) -> None:
        super().__init__(model, cache, tables, size)
        self.group, self.broken = group, False

    def forward(
        self, inputs: Inputs, before: Tensor | None = None, there: Tensor | None = None
    ) -> Tensor:
        """See `Runner.forward`. The other ranks get the tokens that the host knows."""
        assert there is None
        with self._together(inputs.cut(self.size), before):
            return super().forward(inputs, before)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Runner.logits`."""
        with self._together(None, hidden):
            return super().logits(hidden)

    @contextmanager
    def _together(self, inputs: Inputs | None, hidden: Tensor | None) -> Iterator[None]:
        if self.broken:
            raise RuntimeError("a rank has failed; restart all ranks")
        try:
            self.group.tell(ForwardWork(inputs, None if hidden is None else len(hidden)))
            if hidden is not None:
                self.group.share(hidden)
            yield
        except Exception:
            self.broken = True
            raise


def lead(group: TensorGroup, model: CausalLM, blocks: CacheBlocks, tables: Ints) -> Leader:
    """Rank 0's runner; the other ranks are sent the size of the cache to allocate."""
    group.tell(blocks)
    return Leader(group, model, blocks.cache(model), tables, blocks.size)


@torch.inference_mode()
def follow(model: CausalLM, group: TensorGroup) -> None:
    """What the other ranks do: compute what rank 0 computes, until it says that it is done.

    RuntimeError where rank 0 ends without a word. Signals are left to rank 0, whose answers may
    go on for a while.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    blocks: CacheBlocks | None = group.receive()
    if blocks is None:
        return
    dtype, device = home(model.eval())
    runner = Runner(model, blocks.cache(model), np.zeros((0, 0), np.int64), blocks.size)
    work: ForwardWork | None
    while (work := group.receive()) is not None:
        hidden = None
        if work.rows is not None:
            shape = (work.rows, model.config.hidden_size)
            hidden = group.share(torch.empty(shape, dtype=dtype, device=device))
        if work.inputs is not None:
            runner.forward(work.inputs, hidden)
        elif hidden is not None:
            runner.logits(hidden)


def answer(
    folder: Path,
    device: str,
    load: Callable[[TensorGroup | None], CausalLM],
    use: Callable[[CausalLM, TensorGroup | None], None],
) -> None:
    """`use(load(group), group)` on rank 0 of those that torchrun started, the others following.

    The group is None where there is one rank. UserError, before they meet, for a number of ranks
    that the folder's model cannot be split over, and for one GPU by number.
    """
    ranks = started_ranks() or 1
    if ranks == 1:
        use(load(None), None)
        return
    if ":" in device:
        raise bad_value(
            "--device", device, f"cpu or cuda, with one device for each of {ranks} ranks"
        )
    if not (folder / "config.json").is_file() and (folder / ADAPTER).is_file():
        raise UserError(
            f"{folder}: is an adapter, which is not for several ranks; merge it with: "
            "llamaseek convert BASE NEW --adapter"
        )
    from llamaseek.runtime.check import answering_problems  # the planner, which one rank needs not

    for problem in answering_problems(read_config(folder), stored_tensors(folder), ranks):
        raise UserError(problem)
    with joined(device) as group:
        model = load(group)
        if group.rank:
            follow(model, group)
            return
        try:
            use(model, group)
        finally:
            with suppress(RuntimeError):  # the others are gone already
                group.tell(None)
