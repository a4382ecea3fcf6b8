"""Full load for twenty minutes: the server's memory at the end is what it was after a tenth."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from statistics import mean
from typing import Any

from tests.attack.bodies import CHAT, COMPLETIONS, EMBEDDINGS, HELLO, TOKENIZE
from tests.attack.event_loop import send
from tests.attack.figures import Figure
from tests.attack.probed import Probed, probed

PROMISE = "memory within 2% from a tenth of the time on; no 5xx; no block in use after"
MINUTES, CLIENTS, EVERY = 20.0, 64, 1.0
LONG: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}
FORM = {"type": "regex", "regex": "[a-z ]{0,40}"}
KINDS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "The fox", "stream": True, **LONG}),
    (COMPLETIONS, {"prompt": ["A red", "bird"], "n": 2, "logprobs": 3, "max_tokens": 50}),
    (CHAT, {"messages": [HELLO], "stream": True, **LONG}),
    (CHAT, {"messages": [HELLO], "response_format": FORM, "max_tokens": 50}),
    (EMBEDDINGS, {"input": ["The fox", "a bird"]}),
    (TOKENIZE, {"prompt": "The fox " * 50}),
]


def loaded(minutes: float) -> tuple[Probed, Counter[int], list[int]]:
    """As many clients as run at once, without a pause; the statuses, and the memory as it went."""
    found: Counter[int] = Counter()
    memory: list[int] = []
    with probed() as server, ThreadPoolExecutor(CLIENTS) as pool:
        end = time.monotonic() + 60 * minutes

        def client(number: int) -> Counter[int]:
            rng, statuses = Random(number), Counter[int]()
            while time.monotonic() < end:
                path, body = rng.choice(KINDS)
                user = f"user {rng.randrange(1000)}"  # so that prefixes are not always shared
                salted = body if path in (EMBEDDINGS, TOKENIZE) else {**body, "user": user}
                sent = json.dumps({"model": "tiny", **salted}).encode()
                statuses[send(server.port, path, sent)] += 1
            return statuses

        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        while time.monotonic() < end:
            time.sleep(EVERY)
            memory.append(server.memory)
        for each in clients:
            found.update(each.result())
    return server, found, memory


def growth(memory: list[int]) -> float:
    """The last tenth's mean memory over the second tenth's, less 1."""
    tenth = max(1, len(memory) // 10)
    return mean(memory[-tenth:]) / mean(memory[tenth : 2 * tenth]) - 1


def campaign() -> Iterator[Figure]:
    """Twenty minutes."""
    server, found, memory = loaded(MINUTES)
    grown = growth(memory)
    seen = f"{sum(found.values()):,} requests; memory {grown:+.1%}; {server.used} blocks in use"
    kept = abs(grown) <= 0.02 and max(found) < 500 and server.used == 0
    yield Figure(f"{MINUTES:.0f} minutes of {CLIENTS} clients without a pause", seen, PROMISE, kept)
