"""Workers: limits hold, killed ones are replaced, callers get one clear error, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamaseek.workers import pool as pool_module
from llamaseek.workers.channel import Message
from llamaseek.workers.pool import WorkerPool
from llamaseek.workers.worker import OverLimit, PoolFull, WorkerError

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def make(blob: bytes = b"", **options: Any) -> WorkerPool:
    given = {"memory": 64 * MIB, "cpu": 1, **options}
    return WorkerPool("tests.workers.handler", blob, **given)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = make(b"!")
    yield made
    made.close()


def echo(pool: WorkerPool, text: str = "é") -> int:
    """A job that works; the worker's process id."""
    reply = pool.run({"kind": "echo", "text": text}, 10, b"more")
    assert reply.value["echo"] == text and reply.blob == b"more!"
    return int(reply.value["pid"])


async def run_async(pool: WorkerPool, job: dict[str, Any], seconds: float) -> Message:
    """A job of an event loop, on a worker of its own."""
    worker = pool.take()
    try:
        return await worker.ask_async(job, seconds)
    finally:
        pool.give_back(worker)


def test_a_worker_is_kept_for_the_next_job(pool: WorkerPool) -> None:
    first = echo(pool)
    assert echo(pool, "\ud800") == first
    with pytest.raises(WorkerError, match="^a mistake"):
        pool.run({"kind": "raise"}, 10)
    assert echo(pool) == first
    assert echo(make(b"!", idle=0)) != first


@pytest.mark.parametrize(
    ("job", "seconds", "message"),
    [
        ({"kind": "sleep", "amount": 30}, 0.3, "takes longer than 0.3 s"),
        ({"kind": "spin"}, 30, "takes longer than 1 s of processor time"),
        ({"kind": "end"}, 10, "ends its process"),
        ({"kind": "abort"}, 10, "needs more than 64 MiB of memory"),
        ({"kind": "noise"}, 10, "ends its process"),
        ({"kind": "large", "amount": 70 * MIB}, 10, "ends its process"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_job_over_a_limit_is_ended_and_its_worker_replaced(
    job: dict[str, Any], seconds: float, message: str
) -> None:
    pool = make(b"!", memory=64 * MIB if job["kind"] != "large" else 1 << 30)
    first = echo(pool)
    message = message.replace("64 MiB", f"{pool.memory >> 20} MiB")

    async def ask() -> None:
        await run_async(pool, job, seconds)

    calls = [lambda: pool.run(job, seconds), lambda: asyncio.run(ask())]
    for call in calls[: 1 if job["kind"] == "spin" else 2]:
        begun = time.monotonic()
        with pytest.raises(OverLimit, match=f"^{message}$"):
            call()
        assert time.monotonic() - begun < 10
        second = echo(pool)
        assert second != first and pool.running == 1
    pool.close()
    assert not alive(first) and not alive(second)


def test_memory_is_bounded_beyond_what_was_there_and_comes_back(pool: WorkerPool) -> None:
    first = echo(pool)
    with pytest.raises(WorkerError, match="^needs more than 64 MiB of memory$"):
        pool.run({"kind": "allocate", "amount": 80 * MIB}, 10)
    pool.run({"kind": "allocate", "amount": 40 * MIB}, 10)
    assert echo(pool) == first


def test_threads_and_tasks_share_a_pool(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert len(set(threads.map(lambda n: echo(pool, str(n)), range(64)))) <= 64

    async def ask() -> list[Any]:
        jobs = [{"kind": "sleep", "amount": 0.2, "text": str(n)} for n in range(16)]
        return await asyncio.gather(*(run_async(pool, job, 10) for job in jobs))

    begun = time.monotonic()
    assert [reply.value["echo"] for reply in asyncio.run(ask())] == [str(n) for n in range(16)]
    assert time.monotonic() - begun < 3 and pool.running == 1


def test_a_task_that_is_cancelled_ends_its_worker(pool: WorkerPool) -> None:
    async def ask() -> None:
        await asyncio.wait_for(run_async(pool, {"kind": "sleep", "amount": 30}, 60), 0.3)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert pool.running == 0 and echo(pool)


def test_what_a_worker_started_ends_with_it(pool: WorkerPool) -> None:
    worker = pool.take()
    started = worker.ask({"kind": "fork"}, 10).value["pid"]
    assert alive(started)
    worker.close()
    ended([started, worker.pid])


def test_killed_from_outside_it_is_replaced(pool: WorkerPool) -> None:
    first = echo(pool)
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    second = echo(pool)
    assert second != first
    os.kill(parent_of(second), signal.SIGKILL)
    time.sleep(0.1)
    assert echo(pool) not in (first, second)


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch, pool: WorkerPool) -> None:
    monkeypatch.setattr(pool_module, "MOST", 3)
    workers = [pool.take() for _ in range(3)]
    with pytest.raises(PoolFull, match="3 of its kind run already"):
        pool.run({"kind": "echo"}, 10)
    workers[0].close()
    assert echo(pool)


def test_a_handler_that_cannot_be_prepared_says_why() -> None:
    with pytest.raises(WorkerError, match="ValueError: cannot be prepared"):
        make(b"broken").run({"kind": "echo"}, 10)
    with pytest.raises(WorkerError, match="ModuleNotFoundError"):
        WorkerPool("llamaseek.workers.nothing", memory=MIB, cpu=1).run({}, 10)


def test_a_copy_in_a_forked_process_starts_its_own(pool: WorkerPool) -> None:
    first = echo(pool)
    child = os.fork()
    if not child:
        os._exit(0 if echo(pool) != first else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert echo(pool) == first


OWNER = """
import sys, time
from tests.workers.test_pool import make, parent_of
pool = make()
busy = pool.take()
busy.send({"kind": "spin"})
pool.run({"kind": "echo"}, 10)
idle = pool.take()
print(busy.pid, idle.pid, parent_of(idle.pid), "torch" in sys.modules, flush=True)
pool.give_back(idle)
if "wait" in sys.argv:
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_all_end_with_their_owner(how: str) -> None:
    command = [sys.executable, "-c", OWNER, *(["wait"] if how == "is killed" else [])]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # workers do not look in the current folder
    owner = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    *pids, torch = owner.stdout.readline().split()
    if how == "is killed":
        owner.kill()
    owner.wait(20)
    owner.stdout.close()
    ended(list(map(int, pids)))
    assert torch == "False"


def ended(pids: list[int]) -> None:
    """Wait until all of the processes have ended."""
    end = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < end, "a process was left"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
