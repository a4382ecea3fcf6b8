"""The process group of a run that torchrun started, and what ends it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from llamaseek.errors import UserError, bad_value
from llamaseek.runtime.watch import Watchdog
from llamaseek.runtime.world import local_rank, local_ranks, machines, started_ranks

if TYPE_CHECKING:
    from llamaseek.recipe.schema import Recipe

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@contextmanager
def process_group(recipe: Recipe) -> Iterator[None]:
    """The ranks of this run, joined and watched; nothing where torchrun started none.

    Raises `UserError` for more ranks than GPUs, and where ranks came with different recipes.
    """
    if started_ranks() is None:
        yield
        return
    device = pick(recipe.train.device)
    timeout = timedelta(seconds=recipe.parallel.timeout)
    store, rank, world = meet(timeout)
    compare(dist.PrefixStore("recipe", store), rank, world, recipe)
    # Bound to its GPU, a group makes its connections now, and its parts are cut from it.
    bound = torch.device(device, local_rank()) if device == "cuda" else None
    dist.init_process_group(
        BACKENDS[device],
        store=store,
        rank=rank,
        world_size=world,
        timeout=timeout * 2,
        device_id=bound,
    )
    watch = Watchdog(dist.PrefixStore("watch", store), rank, world, recipe.parallel.timeout)
    try:
        with watch:
            yield
            dist.barrier()  # no rank goes while another still needs the store
    finally:
        dist.destroy_process_group()


def meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A store that only the ranks of this start read and write, this one's number, and how many.

    torchrun's own store is kept over restarts, and what lost ranks left there must not be read; but
    each machine counts its own restarts. With `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` the first rank
    opens a new one at every start. `UserError` where several machines that restart have no such.
    """
    starts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if kept and restarts and machines() > 1:
        raise UserError(
            "torchrun: restarts on several machines need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, "
            "as deploy/several-nodes.sh has it; allowed without: --max-restarts 0"
        )
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    return dist.PrefixStore(f"start {starts}", store) if kept else store, rank, world


def pick(wanted: str) -> str:
    """`cpu` or `cuda`; with GPUs each local rank takes one of its own."""
    found = torch.cuda.is_available()
    if not found and wanted not in ("auto", "cpu"):
        raise bad_value("train.device", wanted, "auto, cpu on this machine")
    if wanted == "cpu" or not found:
        return "cpu"
    if wanted not in ("auto", "cuda"):
        raise bad_value("train.device", wanted, "auto, cpu, cuda: each rank takes a GPU of its own")
    here, gpus = local_ranks(), torch.cuda.device_count()
    if here > gpus:
        allowed = f"allowed: torchrun --nproc-per-node {gpus}, or train.device=cpu"
        raise UserError(
            f"parallel: {here} ranks on this machine, but it has {gpus} GPUs; {allowed}"
        )
    torch.cuda.set_device(local_rank())
    return "cuda"


def compare(store: dist.Store, rank: int, world: int, recipe: Recipe) -> None:
    """Every rank's recipe against the first one's, before any group is made."""
    mine = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
    store.set(str(rank), f"{mine} {recipe.name}")
    if rank == 0:
        received = [store.get(str(other)).decode().split(" ", 1) for other in range(world)]
        wrong = [(other, name) for other, (digest, name) in enumerate(received) if digest != mine]
        verdict = ""
        if wrong:
            other, name = wrong[0]
            verdict = (
                f"parallel: rank {other} came with another recipe ({name}) than rank 0 "
                f"({recipe.name}); allowed: one recipe a rendezvous"
            )
        store.set("verdict", verdict or "same")
    verdict = store.get("verdict").decode()
    if verdict != "same":
        raise UserError(verdict)
