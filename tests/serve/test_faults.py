"""Disconnects, full queues, failures, slow clients: each costs its own request and nothing else."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from llamaseek.engine.constrain import Matcher
from llamaseek.models.checkpoint import save_model
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, Running, make_service, running

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG: dict[str, Any] = {"prompt": "The red fox", "max_tokens": 200, "ignore_eos": True}
ALONE = {"prompt": "A quick blue bird", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def server() -> Iterator[Running]:
    with running(make_service(most_running=4, most_waiting=8)) as run:
        yield run
        assert run.idle()


def slow_down(run: Running, seconds: float = 0.01) -> None:
    """Make each step of the engine take its time, so that things can happen meanwhile."""
    engine = run.service.engine
    step = engine.step

    def slower() -> Any:
        time.sleep(seconds)
        return step()

    engine.step = slower  # type: ignore[method-assign]


def leave(run: Running, body: dict[str, Any], after: float, path: str = COMPLETIONS) -> None:
    """Send a request and close the connection some time later."""
    sent = json.dumps({"model": "tiny", **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(run.url.rpartition(":")[2]))) as connection:
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        time.sleep(after)


def test_200_random_disconnects_leave_no_block_in_use(server: Running) -> None:
    alone = server.post(COMPLETIONS, **ALONE).json()["choices"]
    slow_down(server, 0.002)
    rng = Random(0)
    kinds: list[dict[str, Any]] = [
        LONG,
        {**LONG, "stream": True},
        {**LONG, "n": 3, "stream": True},
        {**LONG, "prompt": ["The", "A red", "fox"]},
        {**LONG, "prompt": "The red fox jumped over " * 20, "max_tokens": 50},
        {**LONG, "response_format": {"type": "regex", "regex": "[a-z ]*"}},
    ]
    jobs = [(rng.choice(kinds), rng.random() * 0.15) for _ in range(200)]
    with ThreadPoolExecutor(20) as pool:
        beside = pool.submit(ask_patiently, server, ALONE)
        list(pool.map(lambda job: leave(server, *job), jobs))
        assert beside.result().json()["choices"] == alone
    assert server.idle()
    engine = server.service.engine
    assert engine.pool.used == 0 and not engine.scheduler.running
    assert engine.statistics.cancelled > 0


def ask_patiently(run: Running, body: dict[str, Any]) -> httpx.Response:
    """Ask until the queue has room."""
    soon = time.monotonic() + 120
    while (answer := run.post(COMPLETIONS, **body)).status_code == 429:
        assert time.monotonic() < soon, "the queue never had room"
        assert int(answer.headers["Retry-After"]) >= 1
        time.sleep(0.05)
    return answer


def test_a_full_queue_says_when_to_come_again(server: Running) -> None:
    slow_down(server)
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda _: server.post(COMPLETIONS, **LONG), range(40)))
    statuses = [answer.status_code for answer in found]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 12
    refused = next(answer for answer in found if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["error"]["code"] == "queue_full"
    text = server.client.get("/metrics").text
    assert f'llamaseek_refusals_total{{reason="queue"}} {statuses.count(429)}.0' in text


def test_ready_tells_a_full_queue(server: Running) -> None:
    slow_down(server)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(server.post, COMPLETIONS, **LONG) for _ in range(12)]
        soon = time.monotonic() + 30
        while server.service.background.in_flight < 12:
            assert time.monotonic() < soon, "the queue never filled"
            time.sleep(0.005)
        assert server.client.get("/ready").json() == {"status": "full"}
        assert server.client.get("/health").status_code == 200
        assert all(each.result().status_code == 200 for each in asked)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_s_own_failure_ends_it_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    alone = server.post(COMPLETIONS, **ALONE).json()["choices"]
    slow_down(server, 0.005)

    def broken(matcher: Matcher, token: int) -> bool:
        raise ValueError("secret text of a user")

    monkeypatch.setattr(Matcher, "accept", broken)
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(server.post, COMPLETIONS, **ALONE)
        failed = server.post(
            COMPLETIONS, **LONG, stream=stream, response_format={"type": "json_object"}
        )
        assert beside.result().json()["choices"] == alone
    assert "secret" not in failed.text and "ValueError" not in failed.text
    if stream:
        *_, error, done = failed.text.split("\n\n")[:-1]
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
        assert done == "data: [DONE]"
    else:
        assert failed.status_code == 500
    assert server.client.get("/health").status_code == 200


def test_a_broken_engine_answers_everyone_and_says_so(server: Running) -> None:
    slow_down(server)
    with ThreadPoolExecutor(3) as pool:
        whole = pool.submit(server.post, COMPLETIONS, **LONG)
        streamed = pool.submit(server.post, COMPLETIONS, **LONG, stream=True)
        while server.service.background.in_flight < 2:
            time.sleep(0.005)
        server.service.engine.scheduler.schedule = lambda: 1 / 0  # type: ignore
        assert whole.result().status_code == 503
        assert streamed.result().text.endswith("data: [DONE]\n\n")
        assert '"unavailable_error"' in streamed.result().text
    assert server.client.get("/health").status_code == 503
    assert server.client.get("/ready").status_code == 503
    assert server.post(COMPLETIONS, prompt="x").status_code == 503
    engine = server.service.engine
    del engine.scheduler.schedule  # type: ignore[attr-defined]
    for work in list(engine._work):
        engine.cancel(work)


def test_a_slow_reader_is_waited_for_up_to_the_timeout() -> None:
    with running(make_service(options={"timeout": 1.5}, most_running=4, most_waiting=8)) as run:
        slow_down(run, 0.02)
        start = time.monotonic()
        answer = run.post(COMPLETIONS, **LONG)
        assert answer.status_code == 504 and time.monotonic() - start < 10
        stream = run.post(COMPLETIONS, **LONG, stream=True).text
        assert '"timeout_error"' in stream and stream.endswith("data: [DONE]\n\n")
        assert run.idle()


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with running(make_service(options={"body_timeout": 0.5})) as run:
        port = int(run.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n{"
            )
            connection.settimeout(10)
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_headers_that_are_too_large_or_never_end(server: Running) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        try:
            connection.sendall(b"X: " + b"y" * 200_000)
            assert connection.recv(4096)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")
        except ConnectionError:
            pass
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for connection in held:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-")
    assert server.post(COMPLETIONS, prompt="x").status_code == 200
    for connection in held:
        connection.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder for servers in processes of their own."""
    path = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 4096}
    save_model(tiny_model("llama3", **sizes), path)
    TOKENIZER.save(path)
    return path


def launch(folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`llamaseek serve` in a process, and its address."""
    command = [sys.executable, "-m", "llamaseek", "serve", str(folder), "--name", "tiny"]
    process = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving tiny at http://127.0.0.1:"), line
    return process, line.split()[-1]


async def streams(url: str, count: int, tokens: int, started: threading.Event) -> list[str]:
    """The text of some streams at once; tells when all have begun."""
    begun = 0

    async def one(client: httpx.AsyncClient) -> str:
        nonlocal begun
        body = {"model": "tiny", **LONG, "max_tokens": tokens, "stream": True}
        text = ""
        async with client.stream("POST", f"{url}{COMPLETIONS}", json=body) as answer:
            async for piece in answer.aiter_text():
                if not text:
                    begun += 1
                    if begun == count:
                        started.set()
                text += piece
        return text

    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        return list(await asyncio.gather(*(one(client) for _ in range(count))))


@pytest.mark.parametrize(
    ("tokens", "options", "whole"),
    [(150, ("--drain", "60"), True), (4000, ("--drain", "1"), False)],
)
def test_sigterm_ends_32_streams_properly(
    folder: Path, tokens: int, options: tuple[str, ...], whole: bool
) -> None:
    process, url = launch(folder, *options)
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: asyncio.run(streams(url, 32, tokens, started)))
        assert started.wait(60)
        process.send_signal(signal.SIGTERM)
        found = asked.result(timeout=120)
    assert process.wait(60) == 0
    for text in found:
        assert text.endswith("data: [DONE]\n\n")
        events = [json.loads(e.removeprefix("data: ")) for e in text.split("\n\n")[:-2]]
        if whole:
            assert events[-1]["choices"][0]["finish_reason"] == "length"
        else:
            assert events[-1]["error"]["code"] == "unavailable"


def test_signals_while_idle_and_twice(folder: Path) -> None:
    process, url = launch(folder, "--api-key", "a secret key")
    assert httpx.get(f"{url}/health").status_code == 200
    headers = {"Authorization": "Bearer a secret key"}
    body = {"model": "tiny", "prompt": "a private matter", "max_tokens": 2}
    assert httpx.post(f"{url}{COMPLETIONS}", json=body, headers=headers).status_code == 200
    assert httpx.get(f"{url}/private/matter").status_code == 401
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "POST /v1/completions 200" in log
    assert "secret" not in log and "private" not in log

    process, url = launch(folder, "--drain", "60")
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: asyncio.run(streams(url, 4, 4000, started)))
        assert started.wait(60)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        asked.exception(timeout=60)
    assert process.wait(30) == 0
