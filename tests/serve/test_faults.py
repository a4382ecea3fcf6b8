"""Disconnects, full queues, failures, slow clients: each costs its own request and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from llamaseek.checkpoints.hf import save_model
from llamaseek.engine.matcher import Matcher
from llamaseek.engine.sampling import sampler
from llamaseek.engine.text_out import TextOut
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, Running, make_service, running

COMPLETIONS = "/v1/completions"
IDLE = 1000 if os.environ.get("LLAMASEEK_SERVE_FULL") else 200  # `make test-serve`
LONG: dict[str, Any] = {"prompt": "The red fox", "max_tokens": 200, "ignore_eos": True}
ALONE = {"prompt": "A quick blue bird", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def server() -> Iterator[Running]:
    with running(make_service(max_num_seqs=4, most_waiting=8)) as run:
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


def sent(run: Running, body: dict[str, Any]) -> socket.socket:
    """A connection over which a request was sent."""
    data = json.dumps({"model": "tiny", **body}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", int(run.url.rpartition(":")[2])))
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def leave(run: Running, body: dict[str, Any], after: float) -> None:
    """Send a request and close the connection some time later."""
    with sent(run, body):
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


def gated(run: Running) -> threading.Semaphore:
    """Let the engine step only when the semaphore says so."""
    gate, step = threading.Semaphore(0), run.service.engine.step

    def wait() -> Any:
        gate.acquire(timeout=5)
        return step()

    run.service.engine.step = wait  # type: ignore[method-assign]
    return gate


def until(true: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    soon = time.monotonic() + 60
    while not true():
        assert time.monotonic() < soon, "it never came"
        time.sleep(0.002)


PROMPT = {"prompt": [*range(5, 105)], "max_tokens": 100, "ignore_eos": True}
PHASES: dict[str, tuple[int, dict[str, Any], int]] = {  # running at once, body, steps before
    "queued": (1, PROMPT, 2),
    "in its prompt": (4, PROMPT, 2),
    "in its answer": (4, PROMPT, 7),
    "in its stream": (4, {**PROMPT, "stream": True}, 7),
    "in several answers": (8, {**PROMPT, "n": 3}, 20),
    "in a batch": (8, {**PROMPT, "prompt": [[5] * 9, [6] * 9, [7] * 9]}, 3),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_may_leave_at_any_moment(phase: str) -> None:
    running_at_once, body, steps = PHASES[phase]
    count = 3 if phase == "in a batch" else 1
    options = {
        "max_num_seqs": running_at_once,
        "max_num_batched_tokens": 32,
        "enable_prefix_caching": False,
    }
    with running(make_service(**options)) as run, ThreadPoolExecutor(1) as pool:
        alone = run.post(COMPLETIONS, **ALONE).json()["choices"]
        background, engine = run.service.background, run.service.engine
        gate, before = gated(run), engine.statistics.steps
        beside = pool.submit(run.post, COMPLETIONS, **ALONE)
        until(lambda: background.in_flight == 1)
        with sent(run, body):
            until(lambda: background.in_flight == 1 + count)
            for step in range(steps):
                gate.release()
                until(lambda step=step: engine.statistics.steps == before + step + 1)
            works = [each for each in engine._work.values() if each.request.id != min(engine._work)]
            assert len(works) == count
            said = [len(answer.generated) for work in works for answer in work.answers]
            if phase == "queued":
                assert len(engine.scheduler.waiting) == 1 and said == [0]
            elif phase == "in its prompt":
                assert said == [0] and 0 < works[0].answers[0].computed < 100
            else:
                assert min(said) > 0 and len(said) == (3 if body.get("n") or count == 3 else 1)
        until(lambda: background.in_flight == 1)
        gate.release(1000)
        assert beside.result().json()["choices"] == alone
        assert run.idle() and engine.statistics.cancelled == count


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


def broken(*given: Any) -> Any:
    """What fails, and says what it must not."""
    raise ValueError("secret text of a user")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("where", "name", "body"),
    [
        (Matcher, "accept", {"response_format": {"type": "json_object"}}),
        (Matcher, "mask", {"response_format": {"type": "json_object"}}),
        (sampler, "penalize", {"repetition_penalty": 1.5}),
        (TextOut, "push", {"stop": "never said"}),
    ],
    ids=["grammar", "grammar's mask", "sampling", "detokenizing"],
)
def test_an_answer_s_own_failure_ends_it_alone(
    server: Running,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    alone = server.post(COMPLETIONS, **ALONE).json()["choices"]
    slow_down(server, 0.005)
    real = getattr(where, name)

    def fails(*given: Any) -> Any:
        mine = threading.current_thread().name == "engine"  # compiling tries a mask as well
        if name == "penalize":
            mine = given[-1].repetition_penalty == 1.5
        if name == "push":
            mine = given[0]._stops._stops != []
        return broken() if mine else real(*given)

    monkeypatch.setattr(where, name, fails)
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(server.post, COMPLETIONS, **ALONE)
        failed = server.post(COMPLETIONS, **LONG, stream=stream, **body)
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
    with running(make_service(options={"timeout": 1.5}, max_num_seqs=4, most_waiting=8)) as run:
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
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n{"
            )
            connection.settimeout(10)
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_headers_that_are_too_large_or_never_end(server: Running) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        try:
            connection.sendall(b"X: " + b"y" * 200_000)
            assert connection.recv(4096)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")
        except ConnectionError:
            pass
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE)]
    for connection in held[::2]:  # the others say nothing at all
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-")
    start = time.process_time()
    assert server.post(COMPLETIONS, prompt="x").status_code == 200
    assert time.process_time() - start < 5
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
