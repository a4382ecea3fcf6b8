"""A server in a process of its own whose event loop is probed: a tick every 10 ms.

`python -m tests.attack.probed CONTEXT` says its address, serves until its standard input ends, and
then says by how many milliseconds each tick was late.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, make_service

ROOT = Path(__file__).parents[2]
TICK = 0.01
CONTEXT = 8192


async def probe(late: list[float]) -> None:
    """Note how late each tick comes, in milliseconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + TICK
        await asyncio.sleep(TICK)
        late.append(round(1000 * (loop.time() - due), 1))


async def main(context: int) -> None:
    """Serve and probe."""
    from llamaseek.serve.server import make_server, settle_memory

    sizes = {"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": context}
    service = make_service(tiny_model("llama3", **sizes), max_num_seqs=64, most_waiting=64)
    server, late = make_server(service), list[float]()
    settle_memory()
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(TICK)
    probing = asyncio.create_task(probe(late))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    asked = asyncio.create_task(ended.wait())
    await asyncio.wait({asked, serving}, return_when=asyncio.FIRST_COMPLETED)  # or by SIGTERM
    probing.cancel()
    used = service.engine.pool.used
    server.should_exit = True
    await serving
    print(json.dumps({"late": late, "used": used}), flush=True)


@dataclass
class Probed:
    """A server that is probed; `late` and `used` are filled when it has ended."""

    process: subprocess.Popen[str]
    port: int
    late: list[float] = field(default_factory=list)
    used: int = -1

    def lateness(self, share: float) -> float:
        """Milliseconds that this share of all ticks was at most late."""
        ordered = sorted(self.late)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def memory(self) -> int:
        """Bytes that the server and its workers hold."""
        return sum(map(resident, family(self.process.pid)))

    def terminate(self) -> float:
        """SIGTERM; the seconds until the process has ended."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.read_figures()
        assert self.process.wait(60) == 0
        return time.monotonic() - begun

    def read_figures(self) -> None:
        """What the server says at its end."""
        assert self.process.stdout is not None
        if said := self.process.stdout.readline():
            figures = json.loads(said)
            self.late, self.used = figures["late"], figures["used"]


def family(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in path.read_text().split():
                yield from family(int(child))


def resident(pid: int) -> int:
    """Bytes that a process holds; 0 for one that has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def probed(context: int = CONTEXT) -> Iterator[Probed]:
    """The server of a model with such a context, until the end of the block."""
    command = [sys.executable, "-m", "tests.attack.probed", str(context)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        port = process.stdout.readline().rpartition(":")[2]  # "serving tiny at http://…:PORT"
        run = Probed(process, int(port))
        try:
            yield run
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            run.read_figures()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
