"""The process that workers are forked from. Run as a script, with one socket as standard input.

It loads a handler once (jinja2, or a grammar's tokenizer of 128,000 tokens), has one thread, and
forks a worker when it is asked to: in milliseconds, and what a worker allocates is returned when
it ends. It never runs a job itself, so that it can always end a worker that does.

A handler is a module with `prepare(blob)`, called once; what it returns is called in each worker
and returns the function that answers jobs there: (job, blob) to (reply, blob).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

Answer = Callable[[Mapping[str, Any], bytes], tuple[Mapping[str, Any], bytes]]
Make = Callable[[], Answer]


def main() -> None:
    """Read the setup, load the handler, then fork and end workers until the socket closes."""
    control = socket.socket(fileno=0)
    sys.path[:0] = [sys.argv[1]]
    from llamaseek.workers.channel import Channel, Closed

    channel = Channel(control)
    try:
        setup, blob = channel.receive()
        sys.path[:] = setup["path"]
        make = importlib.import_module(setup["module"]).prepare(blob)
    except Closed:
        return
    except Exception as error:
        channel.send({"error": f"{type(error).__name__}: {error}"})
        return
    channel.send({"ready": True})
    control.setblocking(True)
    obey(control, make)


def obey(control: socket.socket, make: Make) -> None:
    """Carry out orders, a line each; `Orders` says which. At the end all workers are killed."""
    orders = Orders(control, make)
    received, descriptors = b"", list[int]()
    while True:
        try:
            piece, found, _, _ = socket.recv_fds(control, 256, 1)
        except ConnectionError:
            piece = b""
        if not piece:
            break
        descriptors += found
        *lines, received = (received + piece).split(b"\n")
        for line in lines:
            word, *numbers = line.split()
            orders.do(word, list(map(int, numbers)), descriptors)
    for pid in orders.workers:
        kill(pid)
    for pid in orders.workers | orders.killed:
        reap(pid, 0)


class Orders:
    """Commands to the process that forks, and the existing workers."""

    def __init__(self, control: socket.socket, make: Make) -> None:
        self.control, self.make = control, make
        self.workers: set[int] = set()
        self.killed: set[int] = set()

    def do(self, word: bytes, numbers: list[int], descriptors: list[int]) -> None:
        """`fork MEMORY CPU NICE`, with a socket, is answered by the process id; `status PID` kills
        and is answered by the exit status; `kill PID` has no answer."""
        for pid in list(self.killed):
            if reap(pid, os.WNOHANG) is not None:
                self.killed.discard(pid)
        if word == b"fork":
            pid = fork(self.control, descriptors.pop(0), self.make, *numbers)
            self.workers.add(pid)
            self.answer(pid)
            return
        (pid,) = numbers
        self.workers.discard(pid)
        kill(pid)
        if word == b"kill":
            self.killed.add(pid)
        else:
            self.answer(reap(pid, 0) or 0)

    def answer(self, number: int) -> None:
        """A line with a number."""
        with contextlib.suppress(OSError):
            self.control.sendall(b"%d\n" % number)


def fork(
    control: socket.socket, descriptor: int, make: Make, memory: int, cpu: int, nice: int
) -> int:
    """Start a worker on a socket; its process id."""
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    status = 1
    try:
        control.close()
        die_with_parent()
        os.setsid()
        os.nice(nice)
        limit_memory(memory)
        work(descriptor, make(), memory, cpu)
        status = 0
    finally:
        os._exit(status)


def kill(pid: int) -> None:
    """Kill a worker with all that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:  # it has no group of its own yet, or has ended
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def reap(pid: int, options: int) -> int | None:
    """The exit status of a killed worker, as Popen's `returncode`; None while it still ends."""
    try:
        found, status = os.waitpid(pid, options)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def work(descriptor: int, answer: Answer, memory: int, cpu: int) -> None:
    """Answer jobs until the socket closes. A job that uses more processor time ends the process."""
    from llamaseek.workers.channel import Channel, Closed

    channel = Channel(socket.socket(fileno=descriptor))
    with contextlib.suppress(Closed):
        while True:
            job, blob = channel.receive()
            limit_cpu(cpu)
            try:
                reply, extra = attempt(answer, job, blob)
            except MemoryError:
                reply, extra = {"error": f"needs more than {memory >> 20} MiB of memory"}, b""
            channel.send(reply, extra)


def attempt(answer: Answer, job: Mapping[str, Any], blob: bytes) -> tuple[Mapping[str, Any], bytes]:
    """The reply to a job, or `{"error": …}`; MemoryError goes through."""
    try:
        return answer(job, blob)
    except MemoryError:
        raise
    except RecursionError:
        return {"error": "is nested too deeply"}, b""
    except Exception as error:
        return {"error": str(error) or type(error).__name__}, b""


def die_with_parent() -> None:
    """On Linux: be killed when the process that forked this one ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def limit_memory(memory: int) -> None:
    """Allow `memory` bytes of address space beyond what is in use, and no core dumps."""
    limit(resource.RLIMIT_CORE, 0)
    used = address_space()
    if used:
        limit(resource.RLIMIT_AS, used + memory)


def limit_cpu(seconds: int) -> None:
    """Allow so many more seconds of processor time; the kernel counts in whole seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + seconds + 1)


def limit(kind: int, value: int) -> None:
    """Set a soft limit, as far as the hard one allows."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def address_space() -> int:
    """Bytes of address space in use; 0 if the system does not report it (and does not limit it)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    main()
