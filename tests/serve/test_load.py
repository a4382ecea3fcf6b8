"""Many at once, and whatever a machine can think of sending.

LLAMASEEK_SERVE_FULL=1 (`make test-serve`) runs 1,000 connections and 5,000 cases; without it
both are smaller.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.serve.running import Running, make_service, running

FULL = bool(os.environ.get("LLAMASEEK_SERVE_FULL"))
CONNECTIONS = 1000 if FULL else 200
CASES = 5000 if FULL else 200
ROUNDS = 3


async def ask(port: int, body: bytes) -> int:
    """The status of one request over a connection of its own; the whole answer has to come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    answer = await reader.read()
    writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status == 429:
        assert b"retry-after: 1" in head.lower()
        assert json.loads(rest)["error"]["code"] == "queue_full"
    else:
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") or b'"finish_reason":"' in rest
    return status


def memory() -> int:
    """Bytes that this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def all_at_once(run: Running, bodies: list[bytes]) -> Counter[int]:
    port = int(run.url.rpartition(":")[2])

    async def everyone() -> list[int]:
        return list(await asyncio.gather(*(ask(port, body) for body in bodies)))

    return Counter(asyncio.run(everyone()))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's memory figures")
def test_everyone_at_once_gets_an_answer_or_a_429() -> None:
    bodies = [
        json.dumps({"model": "tiny", "prompt": f"The fox {n}", "max_tokens": 8,
                    "ignore_eos": True, "stream": n % 2 == 0}).encode()
        for n in range(CONNECTIONS)
    ]  # fmt: skip
    with running(make_service(max_num_seqs=16, most_waiting=64)) as run:
        held = []
        for _ in range(ROUNDS):
            found = all_at_once(run, bodies)
            print(dict(found), f"{memory() / 1e6:.0f} MB")
            assert set(found) <= {200, 429} and sum(found.values()) == CONNECTIONS
            assert found[200] >= 64 and found[429] > 0
            assert run.idle()
            held.append(memory())
        assert held[-1] - held[0] < 30e6
        assert run.post("/v1/completions", prompt="x").status_code == 200


def test_no_case_of_our_own_description_breaks_the_server() -> None:
    """schemathesis draws fitting and broken requests from /openapi.json."""
    with running(make_service(max_num_seqs=16, most_waiting=64)) as run:
        seen: Counter[int] = Counter()
        send_described(run.url, CASES, seen)
        print(dict(seen), sum(seen.values()), "cases")
        assert sum(seen.values()) >= CASES * 0.95
        assert max(seen) < 500 and seen[200] > 0 and seen[400] > 0
        assert run.idle()


def send_described(url: str, count: int, seen: Counter[int]) -> None:
    """Send about so many cases to the server, which describes itself; count their statuses."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json").json())
    schema.config.update(base_url=url)
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 10
    posts = [each for each in operations if each.method.upper() == "POST"]
    for operation in operations:
        share = count // len(posts) if operation in posts else 20
        for mode in ("positive", "negative"):
            cases(operation, mode, -(-share // 2), seen)


def cases(operation: Any, mode: str, count: int, seen: Counter[int]) -> None:
    """Send that many cases of one operation; errors have to have OpenAI's shape."""
    strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        body = case.body if isinstance(case.body, dict) else None
        if body is not None and "model" in body and isinstance(body["model"], str):
            case.body = {**body, "model": "tiny"}  # or all that is found is that it is unknown
        answer = case.call(timeout=300)
        seen[answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert len(answer.content) < 4096
            error = answer.json()["error"]  # a text in Ollama's protocol
            assert isinstance(error, str) or set(error) == {"message", "type", "param", "code"}

    with contextlib.suppress(Unsatisfiable):  # an operation without anything to get wrong
        send()
