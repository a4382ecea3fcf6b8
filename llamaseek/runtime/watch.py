"""Hang detection: ends a run that makes no progress, and prints the place of each rank.

Every rank reports its place in the run to the rendezvous store each second. When a rank has made
no progress for `timeout` seconds, the first one that still answers prints a line for every rank,
and all exit, so that torchrun can restart them. A rank that cannot reach the store prints that and
exits too.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import torch.distributed as dist

BEAT = 1.0
PATIENCE = 5.0  # seconds in which the store must answer
HUNG = 75  # the exit code of a rank that exits because the run hangs


class Watchdog:
    """A thread beside the training loop; `set_phase` is how the loop says where it is."""

    current: Watchdog | None = None

    def __init__(self, store: dist.Store, rank: int, world: int, timeout: float) -> None:
        self.store, self.rank, self.world, self.timeout = store, rank, world, timeout
        self.place, self.since = "start", time.time()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watchdog:
        Watchdog.current = self
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        Watchdog.current = None
        self.done.set()
        self.thread.join(2 * BEAT)

    def _run(self) -> None:
        try:
            self._beat()  # at once: a rank that stops in its first second has reported
            while not self.done.wait(BEAT):
                self._beat()
                if time.time() - self.since > self.timeout:
                    self._end()
        except RuntimeError:  # the store went with the rank that held it
            return

    def _beat(self) -> None:
        self.store.set(str(self.rank), f"{time.time()} {self.since} {self.place}")

    def _end(self) -> None:
        """Print the place of all ranks if the store answers, then exit this rank."""
        teller = threading.Thread(target=self._tell, daemon=True)
        teller.start()
        teller.join(PATIENCE)
        if teller.is_alive() and not self.done.is_set():
            message = f"no progress for {self.timeout:.0f} s; the store does not answer rank"
            print(f"error: {message} {self.rank}, in {self.place}", file=sys.stderr, flush=True)
        os._exit(HUNG)

    def _tell(self) -> None:
        try:
            self._report()
        except RuntimeError:
            time.sleep(PATIENCE)  # the same as no answer

    def _report(self) -> None:
        """Print one line per rank, on the first rank that answers."""
        lines, silent, answers = [], [], []
        for rank in range(self.world):
            if not self.store.check([str(rank)]):
                lines.append(f"  rank {rank}: never reported (no heartbeat)")
                silent.append(rank)
                continue
            seen, since, place = self.store.get(str(rank)).decode().split(" ", 2)
            quiet = time.time() - float(seen)
            stopped = quiet > 5 * BEAT
            waits = time.time() - float(since)
            if stopped:
                silent.append(rank)
            elif waits > self.timeout / 2:
                answers.append(rank)
            state = f"silent for {quiet:.0f} s, last" if stopped else "waiting"
            lines.append(f"  rank {rank}: {state} in {place} since {waits:.0f} s")
        if not self.done.is_set() and (answers or [self.rank])[0] == self.rank:
            named = f"; not answering: rank {', '.join(map(str, silent))}" if silent else ""
            message = f"error: no progress for {self.timeout:.0f} s{named}\n" + "\n".join(lines)
            print(message, file=sys.stderr, flush=True)
        time.sleep(BEAT)


def set_phase(place: str) -> None:
    """Say where this rank is; nothing where nobody watches."""
    watch = Watchdog.current
    if watch is not None:
        watch.place, watch.since = place, time.time()
