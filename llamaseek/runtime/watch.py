"""Notices a run that stands still, and says which rank is where.

Every rank tells the rendezvous' store each second where it is. When a rank has got nowhere for
`timeout` seconds, the first one that still answers prints a line for every rank, and all end, so
that torchrun can start them again. A rank that does not reach the store says that, and ends too.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import torch.distributed as dist

BEAT = 1.0
PATIENCE = 5.0  # seconds in which the store must answer
HUNG = 75  # the exit code of a rank that ends because the run stands still


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
            self._beat()  # at once: a rank that stops in its first second was heard of
            while not self.done.wait(BEAT):
                self._beat()
                if time.time() - self.since > self.timeout:
                    self._end()
        except RuntimeError:  # the store went with the rank that held it
            return

    def _beat(self) -> None:
        self.store.set(str(self.rank), f"{time.time()} {self.since} {self.place}")

    def _end(self) -> None:
        """Tell where all ranks are, if the store answers; then this rank ends."""
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
        """One line a rank, by the first rank that answers."""
        lines, silent, answers = [], [], []
        for rank in range(self.world):
            if not self.store.check([str(rank)]):
                lines.append(f"  rank {rank}: was never heard of")
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
