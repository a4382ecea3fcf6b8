"""One worker process as its owner sees it, and the errors of work that was given to it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamaseek.workers.channel import Channel, Closed, Message

if TYPE_CHECKING:
    from llamaseek.workers.pool import WorkerPool

SEND_SECONDS = 10.0


class WorkerError(Exception):
    """A job could not be done; the message is a phrase such as "takes longer than 5 s"."""


class JobFailed(WorkerError):
    """The handler says that the job cannot be done; the worker lives on."""


class OverLimit(WorkerError):
    """A job went over its limits, or ended its process; the worker was killed."""


class Late(OverLimit):
    """A job took too long by the clock, which may be because the machine is busy."""


class PoolFull(WorkerError):
    """As many workers run as the pool may have."""


class Worker:
    """One child process, for one thread or task at a time."""

    def __init__(self, pool: WorkerPool, pid: int, channel: Channel) -> None:
        self.pool, self.pid, self.channel = pool, pid, channel
        self.alive = True

    def ask(self, job: Mapping[str, Any], seconds: float, blob: bytes = b"") -> Message:
        """The reply to a job. JobFailed or OverLimit."""
        try:
            self.channel.send(job, blob, seconds)
            return self._checked(self.channel.receive(seconds))
        except TimeoutError:
            raise self.late(seconds) from None
        except Closed:
            raise self.ended() from None

    async def ask_async(self, job: Mapping[str, Any], seconds: float, blob: bytes = b"") -> Message:
        """`ask` for an event loop; a task that is cancelled kills its worker."""
        try:
            await self.channel.send_async(job, blob, seconds)
            return self._checked(await self.channel.receive_async(seconds))
        except TimeoutError:
            raise self.late(seconds) from None
        except Closed:
            raise self.ended() from None
        except WorkerError:
            raise
        except BaseException:
            self.close()
            raise

    def send(self, job: Mapping[str, Any], blob: bytes = b"") -> None:
        """Give it a job without waiting for the reply, which `poll` finds."""
        try:
            self.channel.send(job, blob, SEND_SECONDS)
        except (Closed, TimeoutError):
            raise self.ended() from None

    def poll(self) -> Message | None:
        """The reply to a job that was sent, if it is there."""
        try:
            found = self.channel.poll()
        except Closed:
            raise self.ended() from None
        return None if found is None else self._checked(found)

    def _checked(self, reply: Message) -> Message:
        if "error" in reply.value:
            raise JobFailed(str(reply.value["error"]))
        return reply

    def late(self, seconds: float) -> Late:
        """Kill it; the error for a job that takes too long."""
        self.close()
        return Late(f"takes longer than {seconds:g} s")

    def ended(self) -> OverLimit:
        """The error for a worker whose process has ended, or must."""
        status = self.pool.end(self, wait=True)
        if status == -signal.SIGXCPU:
            return OverLimit(f"takes longer than {self.pool.cpu} s of processor time")
        if status == -signal.SIGABRT:  # how Rust and C++ end when there is no memory
            return OverLimit(f"needs more than {self.pool.memory >> 20} MiB of memory")
        return OverLimit("ends its process")

    def lower_priority(self) -> None:
        """Let everything else on the machine go first from now on."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.pid, 19)

    def close(self) -> None:
        """Kill it, with all that it started."""
        self.pool.end(self)
