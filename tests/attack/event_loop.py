"""No request, whatever its shape, holds the event loop."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from tests.attack.bodies import COMPLETIONS, bodies
from tests.attack.figures import Figure
from tests.attack.probed import Probed, probed

LARGEST = 4 << 20
PROMISE = "99.9% of ticks at most 50 ms late, none over 150 ms; no 5xx; no block in use after"


def send(port: int, path: str, body: bytes) -> int:
    """The status of one request; its answer is read and thrown away."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        return answer.status
    finally:
        connection.close()


def hostile(count: int, largest: int = LARGEST) -> tuple[Probed, Counter[int]]:
    """Hostile bodies one after another; the server, ended, and the statuses of its answers."""
    with probed() as server:
        found = Counter(send(server.port, path, body) for path, body in bodies(count, largest))
    return server, found


def load(rounds: int) -> tuple[Probed, Counter[int]]:
    """64 streams at once, so many times."""
    body = {"model": "tiny", "prompt": "The fox", "max_tokens": 200, "ignore_eos": True}
    sent = json.dumps({**body, "stream": True}).encode()
    found: Counter[int] = Counter()
    with probed() as server, ThreadPoolExecutor(64) as pool:
        for _ in range(rounds):
            found.update(pool.map(send, repeat(server.port), repeat(COMPLETIONS), [sent] * 64))
    return server, found


def figure(tried: str, server: Probed, found: Counter[int]) -> Figure:
    """What was seen of the ticks."""
    late, worst = server.lateness(0.999), server.lateness(1)
    seen = f"99.9% of {len(server.late)} ticks {late:.0f} ms, worst {worst:.0f} ms"
    kept = late <= 50 and worst <= 150 and max(found) < 500 and server.used == 0
    return Figure(tried, seen, PROMISE, kept)


def campaign() -> Iterator[Figure]:
    """About four minutes."""
    yield figure("2,000 hostile bodies of up to 4 MB", *hostile(2000))
    yield figure("64 streams at once, ten times", *load(10))
