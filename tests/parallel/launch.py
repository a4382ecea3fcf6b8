"""Run a function on several ranks of one machine, each a process with one thread."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

# Ranks are forked from a server that has imported everything and computed nothing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["llamaseek.train.jobs.pretrain", "torch.utils.tensorboard", "tests.parallel.scenes"]
)


def on_ranks(
    world: int, function: Callable[..., Any], *args: Any, seconds: float = 300
) -> list[Any]:
    """What `function(*args)` returns on each rank; raises the first rank's error."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [SERVER.Pipe(duplex=False) for _ in range(world)]
        store = os.path.join(folder, "store")
        processes = [
            SERVER.Process(target=_rank, args=(rank, world, store, function, args, pipes[rank][1]))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for _, ours in pipes:
            ours.close()
        try:
            return _collect([pipe for pipe, _ in pipes], seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection], seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, seconds)
        if not ready:
            raise TimeoutError(f"ranks {[pipes.index(pipe) for pipe in waiting]} gave nothing")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            good, value = pipe.recv()
            if not good:
                raise RuntimeError(f"rank {pipes.index(pipe)}:\n{value}")
            results[pipes.index(pipe)] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank(
    rank: int, world: int, store: str, function: Any, args: tuple[Any, ...], pipe: Connection
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    try:
        if world > 1:
            init = f"file://{store}"
            dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world)
        pipe.send((True, function(*args)))
        if world > 1:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
