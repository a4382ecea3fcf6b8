"""Requests of all kinds in their thousands: no 5xx, no hang, nothing held after them."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from llamaseek.serve.app import create_app
from tests.attack.figures import Figure
from tests.attack.fuzz import Case, Fuzz, targets
from tests.attack.probed import Probed, probed
from tests.serve.running import make_service
from tests.serve.test_load import ask, send_described

PROMISE = "no 5xx, no hang; afterwards no block in use and memory flat (within 30 MB)"
CONTEXT = 512  # tokens: answers without a limit end soon
SECONDS = 60.0  # without an answer; more is a hang
CLIENTS = 4
FLAT = 30e6


def send(port: int, case: Case) -> int:
    """The status of one request; 599 for a stream that fails, 0 for what no client can send."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        headers = {**case.headers, "Content-Length": str(len(case.body))} if case.body else {}
        connection.request(case.method, case.path, case.body, headers)
        answer = connection.getresponse()
        text = answer.read()
        broken = b'"type":"server_error"' in text and answer.status == 200
        return 599 if broken else answer.status
    except (UnicodeEncodeError, http.client.InvalidURL):
        return 0
    finally:
        connection.close()


def fuzzed(count: int) -> tuple[Probed, Counter[int], float, set[str]]:
    """So many requests of our own; the statuses, bytes more than after a third, all paths asked."""
    found = targets(create_app(make_service()))
    statuses: Counter[int] = Counter()
    cases = list(Fuzz(found).cases(count))
    with probed(CONTEXT) as server, ThreadPoolExecutor(CLIENTS) as pool:
        third = count // 3
        statuses.update(pool.map(lambda case: send(server.port, case), cases[:third]))
        before = rested(server)
        statuses.update(pool.map(lambda case: send(server.port, case), cases[third:]))
        grown = rested(server) - before
    return server, statuses, grown, {target.path for target in found}


def described(count: int) -> tuple[Probed, Counter[int], float]:
    """So many cases of schemathesis, drawn from the server's own description."""
    statuses: Counter[int] = Counter()
    with probed(CONTEXT) as server:
        url = f"http://127.0.0.1:{server.port}"
        send_described(url, count // 3, statuses)
        before = rested(server)
        send_described(url, count - count // 3, statuses)
        grown = rested(server) - before
    return server, statuses, grown


def rested(server: Probed) -> int:
    """The memory once nothing is in use; AssertionError where something stays so."""
    end = time.monotonic() + SECONDS
    while in_use(server.port):
        assert time.monotonic() < end, "blocks stay in use"
        time.sleep(0.1)
    return server.memory


def in_use(port: int) -> float:
    """Blocks that answers hold, and requests in flight, by the server's metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    names = ("llamaseek_cache_blocks_used ", "llamaseek_requests_in_flight ")
    return sum(float(line.split()[1]) for line in lines if line.startswith(names))


async def leave(port: int, body: bytes, rng: Random) -> int:
    """Send some or all of a request, maybe read some of its answer, and break the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    text = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    writer.write(text if rng.random() < 0.7 else text[: rng.randrange(len(text))])
    await asyncio.sleep(rng.uniform(0, 0.5))
    if rng.random() < 0.5:  # a reset rather than an end
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()
    return 0


def connections(count: int, leaving: int, rounds: int) -> tuple[Probed, Counter[int], float]:
    """So many connections at once, of which some break off; rounds of it, after one to warm up."""
    rng = Random("connections")
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "ignore_eos": True}
    bodies = [
        json.dumps({**body, "prompt": f"The fox {n}", "stream": n % 2 == 0}).encode()
        for n in range(count)
    ]
    statuses: Counter[int] = Counter()

    async def everyone(port: int) -> None:
        left = set(rng.sample(range(count), leaving))
        each = [
            leave(port, sent, rng) if number in left else ask(port, sent)
            for number, sent in enumerate(bodies)
        ]
        statuses.update(await asyncio.wait_for(asyncio.gather(*each), 10 * SECONDS))

    with probed(CONTEXT) as server:
        asyncio.run(everyone(server.port))
        before = rested(server)
        for _ in range(rounds - 1):
            asyncio.run(everyone(server.port))
        grown = rested(server) - before
    return server, statuses, grown


def figure(tried: str, server: Probed, statuses: Counter[int], grown: float) -> Figure:
    """What was seen of the answers and of what they left."""
    told = ", ".join(
        f"{number:,} × {status}" for status, number in sorted(statuses.items()) if status
    )
    seen = f"{told}; {grown / 1e6:.0f} MB more; {server.used} blocks in use"
    kept = max(statuses) < 500 and grown <= FLAT and server.used == 0
    return Figure(tried, seen, PROMISE, kept)


def campaign() -> Iterator[Figure]:
    """About ten minutes."""
    server, statuses, grown, paths = fuzzed(10_000)
    yield figure(f"10,000 requests by chance to {len(paths)} routes", server, statuses, grown)
    yield figure("10,000 cases of schemathesis", *described(10_000))
    tried = "1,000 connections at once, 200 of them broken off, three times"
    yield figure(tried, *connections(1000, 200, 3))
