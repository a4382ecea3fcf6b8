"""Pools of workers: jobs with limits of time and memory, in processes that are killed beyond them.

A pool starts one process, which loads the handler and forks the workers (`child`). A worker
that goes over a limit is killed and the next job has another one a few milliseconds later; what
it allocated is returned to the system. All of them end with the process that made the pool.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamaseek.workers.channel import Channel, Closed, Message, pair
from llamaseek.workers.worker import PoolFull, Worker, WorkerError

CHILD = Path(__file__).with_name("child.py")
START_SECONDS = 60.0
ORDER_SECONDS = 10.0
END_SECONDS = 5.0
LONGEST_REPLY = 1 << 26
MOST = 1024  # workers of one pool at once


class _Gone(WorkerError):
    """The process that forks does not answer."""


class WorkerPool:
    """Workers with one handler: `module` as `child` describes it, prepared with `blob`.

    Each may allocate `memory` bytes, and use `cpu` seconds of processor time for one job. `idle`
    workers are kept for the next job; with 0 each job has a process of its own. Threads, tasks,
    and copies in forked processes may share a pool.
    """

    def __init__(
        self, module: str, blob: bytes = b"", *, memory: int, cpu: int, idle: int = 1, nice: int = 0
    ) -> None:
        self.module, self.blob = module, blob
        self.memory, self.cpu, self.idle, self.nice = memory, cpu, idle, nice
        self._lock = threading.Lock()  # of all below; held for milliseconds once it has started
        self._control: socket.socket | None = None
        self._owner = 0
        self._finish: weakref.finalize[Any, Any] | None = None
        self._free: list[Worker] = []
        self._pids: set[int] = set()

    def run(self, job: Mapping[str, Any], seconds: float, blob: bytes = b"") -> Message:
        """The reply to a job from any worker. WorkerError if it fails."""
        worker = self.take()
        try:
            return worker.ask(job, seconds, blob)
        finally:
            self.give_back(worker)

    def take(self) -> Worker:
        """A worker of the caller's own, for work that has a state; to be closed or given back."""
        with self._lock:
            self._ensure()
            while self._free:
                worker = self._free.pop()
                if self._quiet(worker):
                    return worker
                self._end(worker)
            for _ in range(2):  # something outside may have ended the process that forks
                self._ensure()
                with contextlib.suppress(_Gone):
                    return self._fork()
            raise WorkerError("cannot start a process")

    def give_back(self, worker: Worker) -> None:
        """Keep a worker for the next job, or end it."""
        with self._lock:
            ours = worker.alive and self._owner == os.getpid() and worker.pid in self._pids
            if ours and len(self._free) < self.idle:
                self._free.append(worker)
                return
        worker.close()

    def start(self) -> None:
        """Load the handler now rather than with the first job. WorkerError if that fails."""
        with self._lock:
            self._ensure()

    def close(self) -> None:
        """End all workers; the next job starts new ones."""
        with self._lock:
            self._close()

    def end(self, worker: Worker, wait: bool = False) -> int:
        """Kill a worker; its exit status if that is waited for, else 0."""
        with self._lock:
            return self._end(worker, wait)

    @property
    def running(self) -> int:
        """Workers that there are, idle ones too."""
        return len(self._pids)

    def _quiet(self, worker: Worker) -> bool:
        """Whether an idle worker lives and has nothing more to say."""
        try:
            return worker.channel.poll() is None
        except Closed:
            return False

    def _ensure(self) -> None:
        """Start the process that forks, unless it runs. The lock is held, as below."""
        if self._owner != os.getpid():  # after a fork the process is another's
            self._control, self._free, self._pids = None, [], set()
            if self._finish is not None:
                self._finish.detach()
        if self._control is not None and self._finish is not None and self._finish.alive:
            return
        ours, theirs = pair()
        command = [sys.executable, "-I", str(CHILD), str(Path(__file__).parents[2])]
        keep = {name: os.environ[name] for name in ("TZ", "LANG") if name in os.environ}
        try:
            child = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=keep, cwd="/",
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise WorkerError(f"cannot start a process ({error.strerror})") from None
        finally:
            theirs.close()
        self._control, self._owner = ours, os.getpid()
        self._finish = weakref.finalize(self, _finish, ours, child, self._owner)
        self._set_up(ours)

    def _set_up(self, control: socket.socket) -> None:
        channel = Channel(control)
        path = [each for each in sys.path if each]
        try:
            channel.send({"module": self.module, "path": path}, self.blob, START_SECONDS)
            reply = channel.receive(START_SECONDS).value
        except TimeoutError:
            reply = {"error": f"takes longer than {START_SECONDS:g} s to start"}
        except Closed:
            reply = {"error": "ends its process"}
        if "error" in reply:
            self._close()
            raise WorkerError(str(reply["error"]))
        control.settimeout(ORDER_SECONDS)

    def _fork(self) -> Worker:
        if len(self._pids) >= MOST:
            raise PoolFull(f"{MOST} of its kind run already")
        ours, theirs = pair()
        with theirs:
            limits = (self.memory, self.cpu, self.nice)
            pid = self._order(b"fork %d %d %d", *limits, descriptors=[theirs.fileno()])
        self._pids.add(pid)
        return Worker(self, pid, Channel(ours, LONGEST_REPLY))

    def _end(self, worker: Worker, wait: bool = False) -> int:
        worker.alive = False
        worker.channel.close()
        if self._owner != os.getpid() or worker.pid not in self._pids:
            return 0  # of another process, or of one that was closed
        self._pids.discard(worker.pid)
        with contextlib.suppress(_Gone):
            return self._order(b"status %d" if wait else b"kill %d", worker.pid, answered=wait)
        return 0

    def _order(
        self, order: bytes, *numbers: int, descriptors: Sequence[int] = (), answered: bool = True
    ) -> int:
        """The number that answers an order of `child`. `_Gone` if nothing does."""
        if self._control is None:
            raise _Gone
        try:
            socket.send_fds(self._control, [order % numbers + b"\n"], descriptors)
            answer = self._control.recv(32) if answered else b"0"
        except OSError:
            answer = b""
        if not answer:
            self._close()
            raise _Gone
        return int(answer)

    def _close(self) -> None:
        if self._owner == os.getpid() and self._finish is not None:
            self._finish()
        for worker in self._free:
            worker.alive = False
            worker.channel.close()
        self._control, self._free, self._pids = None, [], set()


def _finish(control: socket.socket, child: subprocess.Popen[bytes], owner: int) -> None:
    """End the process that forks, which ends its workers; not from a copy of the owner."""
    control.close()
    if os.getpid() != owner:
        return
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
