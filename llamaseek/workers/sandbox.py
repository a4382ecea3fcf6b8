"""Programs that a model wrote, run and tested where they can do no harm.

`run` gives a verdict whatever the program does: a failure of any kind, of the program or of the
sandbox itself, is a verdict that it did not pass. The program runs confined as the system allows
(`confine`); its tests run in another process, which compares plain values (`remote`).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import cpu_count

from llamaseek.workers.confine import MODES
from llamaseek.workers.pool import WorkerPool
from llamaseek.workers.worker import WorkerError

FENCE = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)
JUDGE_MEMORY = 1 << 29
GRACE = 5.0  # seconds beyond a program's own that its judge has
REMOVE_SECONDS = 2.0
LETS_THROUGH = {
    "namespaces": (),
    "bubblewrap": (),
    "limits": (
        "reading every file that this user can read",
        "writing and deleting this user's files (not where the program was started by root)",
        "signals to this user's processes (not where it was started by root)",
        "network connections, where the system does not give up the network on request",
    ),
}
"""What a program can do all the same, by where it runs."""


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What one program may use: seconds by the clock, and bytes of memory."""

    seconds: float = 5.0
    memory: int = 1 << 29


@dataclass(frozen=True)
class SandboxResult:
    """Whether a program passes its tests, why not, and whether the sandbox itself failed."""

    passed: bool
    reason: str
    broken: bool = False


@dataclass(frozen=True)
class Confinement:
    """Where programs run here (one of `MODES`), why not in a better place, and what gets out."""

    mode: str
    refused: tuple[str, ...] = ()

    @property
    def lets_through(self) -> tuple[str, ...]:
        """What a program can still do."""
        return LETS_THROUGH[self.mode]


class Sandbox:
    """Runs programs; threads may share it. `mode` is found out unless it is given."""

    def __init__(self, mode: str | None = None) -> None:
        self._pool: WorkerPool | None = None
        self._cpu = 0
        self._lock = threading.Lock()
        self._confinement = None if mode is None else Confinement(mode)

    def run(
        self,
        program: str,
        tests: str,
        limits: SandboxLimits | None = None,
        entry_point: str | None = None,
    ) -> SandboxResult:
        """Whether a program passes tests, which are Python that uses its names.

        `entry_point` is a name of the program that may replace a built-in function.
        """
        return self._run(
            self.confinement().mode, program, tests, limits or SandboxLimits(), entry_point
        )

    def run_all(
        self, pairs: Sequence[tuple[str, str]], limits: SandboxLimits | None = None
    ) -> list[SandboxResult]:
        """The verdict on each program and its tests, on all processors."""
        self.confinement()
        with ThreadPoolExecutor(cpu_count() or 1) as threads:
            return list(threads.map(lambda pair: self.run(pair[0], pair[1], limits), pairs))

    def confinement(self) -> Confinement:
        """Where programs run on this system; tried once. RuntimeError where they cannot at all."""
        with self._lock:
            if self._confinement is None:
                self._confinement = self._try_modes()
            return self._confinement

    def _try_modes(self) -> Confinement:
        refused = list[str]()
        for mode in MODES:
            tried = self._run(mode, "def f(n): return n", "assert f(2) == 2", SandboxLimits(), None)
            if tried.passed:
                return Confinement(mode, tuple(refused))
            refused.append(f"{mode}: {tried.reason}")
        raise RuntimeError(f"sandbox: no program can be run ({'; '.join(refused)})")

    def _run(
        self, mode: str, program: str, tests: str, limits: SandboxLimits, entry_point: str | None
    ) -> SandboxResult:
        try:
            with empty_folder() as folder:
                worker = self._workers(limits).take()
                try:
                    job = {
                        "program": program, "mode": mode, "folder": folder,
                        "seconds": limits.seconds, "memory": limits.memory,
                        "entry_point": entry_point,
                    }  # fmt: skip
                    found = worker.ask(job, limits.seconds + GRACE).value
                    if found.get("passed"):
                        found = worker.ask({"tests": tests}, limits.seconds + GRACE).value
                    return SandboxResult(bool(found.get("passed")), str(found.get("reason")))
                finally:
                    worker.close()
        except (WorkerError, OSError, ValueError, RecursionError) as error:
            return SandboxResult(False, f"the sandbox fails: {error}", broken=True)

    def _workers(self, limits: SandboxLimits) -> WorkerPool:
        cpu = int(limits.seconds + GRACE)
        if self._pool is None or self._cpu < cpu:
            self._cpu = cpu
            self._pool = WorkerPool("llamaseek.workers.judge", memory=JUDGE_MEMORY, cpu=cpu, idle=0)
        return self._pool

    def close(self) -> None:
        """End its processes."""
        if self._pool is not None:
            self._pool.close()


@contextmanager
def empty_folder() -> Iterator[str]:
    """An empty folder, removed afterwards however deep it is and whatever it was replaced by."""
    folder = tempfile.mkdtemp(prefix="answer-")
    try:
        yield folder
    finally:
        # Python's own way ends at the recursion limit. What takes longer goes on by itself.
        remove = 'rm -rf -- "$1" || { chmod -R u+rwx -- "$1"; rm -rf -- "$1"; }'
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(["/bin/sh", "-c", remove, "sh", folder], stderr=quiet)
        with suppress(subprocess.TimeoutExpired):
            process.wait(REMOVE_SECONDS)


def code_of(answer: str) -> str:
    """The code of an answer: its first fenced block, or all of it."""
    found = FENCE.search(answer)
    return found[1] if found else answer
