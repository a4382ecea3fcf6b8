"""Several API keys: each is let in, and held to its own limits and no other's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from llamaseek.errors import UserError
from llamaseek.serve import callers
from llamaseek.serve.keys import ApiKey, KeyLimits, all_keys, read_keys
from llamaseek.serve.options import ServeOptions
from tests.cli.run import Cli
from tests.serve.running import Running, make_service, running
from tests.serve.test_malformed import COMPLETIONS

KEYS = (
    ApiKey("free"),
    ApiKey("few", KeyLimits(rpm_limit=3)),
    ApiKey("short", KeyLimits(tpm_limit=20)),
    ApiKey("one", KeyLimits(max_parallel_requests=1)),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_service(options={"api_keys": KEYS})) as run:
        yield run
        assert run.idle()


def ask(server: Running, key: str, **body: object) -> httpx.Response:
    given = {"model": "tiny", "prompt": "The fox", "max_tokens": 4, "ignore_eos": True, **body}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(server.url + COMPLETIONS, json=given, headers=headers, timeout=60)


def wait_of(answer: httpx.Response, limit: str) -> int:
    """The seconds that a refused key is told to wait."""
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert error["code"] == "rate_limit_exceeded" and limit in error["message"]
    return int(answer.headers["Retry-After"])


def test_every_key_is_let_in_and_no_other(server: Running) -> None:
    for key in ("free", "few", "short", "one"):
        assert server.client.get("/v1/models", headers=bearer(key)).status_code == 200
    for key in ("fre", "freee", "free few", "FREE"):
        assert server.client.get("/v1/models", headers=bearer(key)).status_code == 401


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_requests_a_minute(server: Running) -> None:
    for _ in range(3):
        assert ask(server, "few").status_code == 200
    assert 1 <= wait_of(ask(server, "few"), "3 requests a minute (rpm_limit)") <= 20
    assert ask(server, "free").status_code == 200  # another key is not told to wait
    assert server.client.get("/v1/models", headers=bearer("few")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_a_minute_count_what_is_read_and_said(stream: bool) -> None:
    with running(make_service(options={"api_keys": KEYS})) as run:
        first = ask(run, "short", max_tokens=30, stream=stream)  # it may overdraw
        assert first.status_code == 200
        wait = wait_of(ask(run, "short"), "20 tokens a minute (tpm_limit)")
        assert 60 * 11 / 20 < wait < 60 * 25 / 20  # 30 said and a few read, of 20
        assert ask(run, "free").status_code == 200


def test_requests_at_once(server: Running) -> None:
    entered, gate, step = threading.Event(), threading.Event(), server.service.engine.step

    def wait() -> object:
        entered.set()
        gate.wait(30)
        return step()

    server.service.engine.step = wait  # type: ignore[method-assign, assignment]
    try:
        with ThreadPoolExecutor(2) as pool:
            held = pool.submit(ask, server, "one")
            assert entered.wait(30)
            assert wait_of(ask(server, "one"), "1 requests at once (max_parallel_requests)") == 1
            beside = pool.submit(ask, server, "free")
            gate.set()
            assert held.result().status_code == beside.result().status_code == 200
    finally:
        server.service.engine.step = step  # type: ignore[method-assign]
    assert ask(server, "one").status_code == 200  # it was given back
    assert ask(server, "one", max_tokens=-5).status_code == 400
    assert ask(server, "one").status_code == 200  # after an error, too


def test_a_bucket_fills_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(callers.time, "monotonic", lambda: now)
    bucket = callers.Bucket(6)
    for _ in range(6):
        assert bucket.wait() == 0
        bucket.take(1)
    assert bucket.wait() == pytest.approx(10)
    now += 10
    assert bucket.wait() == 0
    now += 1000
    assert bucket.wait() == 0 and bucket.left == 6


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalice rpm_limit=60 tpm_limit=1000\n\nbob max_parallel_requests=2\n")
    found = read_keys(path, KeyLimits(rpm_limit=5))
    assert found == [
        ApiKey("alice", KeyLimits(rpm_limit=60, tpm_limit=1000)),
        ApiKey("bob", KeyLimits(rpm_limit=5, max_parallel_requests=2)),
    ]
    assert all_keys(["carol"], path, KeyLimits())[0] == ApiKey("carol")


@pytest.mark.parametrize(
    "line", ["key secret", "key rpm_limit=0", "key rpm_limit=-1", "key rpm=5", "key tpm_limit=1e3"]
)
def test_a_broken_line_is_named_and_not_repeated(line: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"fine\n{line}\n")
    with pytest.raises(UserError, match=r"keys:2: .* rpm_limit=NUMBER") as error:
        read_keys(path, KeyLimits())
    assert "secret" not in str(error.value) and "1e3" not in str(error.value)


def test_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    for words, told in (
        (["--rpm-limit", "5"], "--rpm-limit: is for each API key; give --api-key"),
        (["--api-key", "a", "--tpm-limit", "0"], "--tpm-limit: 0"),
        (["--api-key", "a", "--api-key", "a"], "the same key is given twice"),
        (["--api-key", " "], "--api-key: ' '"),
        (["--api-key-file", str(tmp_path / "none")], "none cannot be read"),
    ):
        result = cli("serve", str(tmp_path), *words)
        assert result.code == 2 and result.err.startswith("error: ") and told in result.err, words
        assert result.err.count("\n") == 1
    with pytest.raises(UserError, match="the same key is given twice"):
        ServeOptions(api_keys=(ApiKey("a"), ApiKey("a")))
