"""Hostile schemas, expressions and grammars beside answers that must not wait."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.attack.bodies import CHAT, HELLO
from tests.attack.figures import Figure
from tests.attack.formats import formats
from tests.attack.probed import probed

PROMISE = (
    "a harmless constrained answer beside them within 1 s throughout; memory within 300 MB of the "
    "start; SIGTERM ends within 5 s while some compile"
)
FINE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
PRIMES = (9999991, 9999973, 9999971, 9999943)
ENDLESS: list[dict[str, Any]] = [
    *({"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "integer", "multipleOf": prime}}} for prime in PRIMES),
    *({"type": "lark", "lark": f'start: s "{n}"\ns: s s | s s s | /[a-z ]/'} for n in PRIMES),
]  # fmt: skip
"""Each is another to compile, or whose masks take long; together they keep a machine busy."""


def ask(port: int, form: dict[str, Any], tokens: int) -> int:
    """The status of one answer held to a format."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"model": "tiny", "messages": [HELLO], "max_tokens": tokens, "response_format": form}
    try:
        connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@dataclass
class Beside:
    """What was seen: `longest` seconds of a harmless answer, `ended` until the process was gone
    after SIGTERM, `grown` bytes more than before."""

    longest: float = 0.0
    grown: int = 0
    ended: float = 0.0
    harmless: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


def beside(count: int) -> Beside:
    """Hostile formats one after another beside harmless answers; then SIGTERM with some at work."""
    found, over = Beside(), threading.Event()

    def healthy(port: int) -> None:
        while not over.is_set():
            begun = time.monotonic()
            status = ask(port, FINE, 20)
            found.longest = max(found.longest, time.monotonic() - begun)
            found.harmless += status == 200
            found.statuses[status] += 1
            time.sleep(0.05)

    with probed() as server, ThreadPoolExecutor(len(ENDLESS)) as pool:
        for _ in range(3):
            ask(server.port, FINE, 20)
        before = server.memory
        thread = threading.Thread(target=healthy, args=(server.port,))
        thread.start()
        try:
            found.statuses.update(ask(server.port, form, 60) for form in formats(count))
        finally:
            over.set()
            thread.join()
        found.grown = server.memory - before
        asked = [pool.submit(ask, server.port, form, 900) for form in ENDLESS]
        time.sleep(0.5)
        found.ended = server.terminate()
        for each in asked:
            each.exception(60)  # an answer that says so, or a closed connection
    return found


def campaign() -> Iterator[Figure]:
    """About five minutes."""
    found = beside(300)
    seen = (
        f"longest of {found.harmless} {found.longest:.2f} s; {found.grown / 1e6:.0f} MB more; "
        f"SIGTERM {found.ended:.1f} s"
    )
    kept = found.longest <= 1 and found.grown <= 300e6 and found.ended <= 5
    kept = kept and max(found.statuses) < 500 and found.harmless > 0
    yield Figure(
        "300 schemas, expressions and grammars, half drawn by hypothesis", seen, PROMISE, kept
    )
