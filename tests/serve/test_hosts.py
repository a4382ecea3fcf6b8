"""Requests whose Host header names another server: DNS rebinding, and its relatives."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from llamaseek.errors import UserError
from llamaseek.serve.hosts import is_allowed, is_loopback
from llamaseek.serve.keys import ApiKey
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.server import warn_of_open_address
from tests.serve.running import Running, make_service, running

OURS = [
    "localhost", "localhost:8000", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "127.1.2.3",
    "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]:80", "llama.localhost:8000", "localhost.",
    " localhost ",
]  # fmt: skip
THEIRS = [
    "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example",
    "evil.example:127.0.0.1", "evil@localhost", "localhost@evil.example", "localhost/evil", "",
    "8.8.8.8", "0.0.0.0", "[2001:db8::1]:8000", "192.168.1.7:8000", "::1", "localhost:99:99",
    "evillocalhost",
    "2130706433", "localhost, evil.example", "[::1].evil.example",
]  # fmt: skip


@pytest.mark.parametrize("listening", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
def test_a_server_of_this_machine_answers_to_its_own_names(listening: str) -> None:
    assert all(is_allowed([name], listening, ()) for name in OURS)
    assert not [name for name in THEIRS if is_allowed([name], listening, ())]
    assert is_allowed([], listening, ())  # HTTP/1.0 may lack the header; browsers never do
    assert not is_allowed(["localhost", "evil.example"], listening, ())
    assert is_allowed(["evil.example:99"], listening, ("evil.example",))
    assert is_allowed(["evil.example"], listening, ("*",))


def test_an_open_server_checks_what_it_is_told_to() -> None:
    assert is_allowed(["any.example"], "0.0.0.0", ())
    allowed = ServeOptions(host="0.0.0.0", allowed_hosts=("LLM.example:443",)).allowed_hosts
    assert allowed == ("llm.example",)
    for name, fits in (("llm.example", True), ("localhost", True), ("evil.example", False)):
        assert is_allowed([name], "0.0.0.0", allowed) == fits
    with pytest.raises(UserError, match="--allowed-host: 'a b' is not allowed"):
        ServeOptions(allowed_hosts=("a b",))
    assert (
        not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("localhost.evil")
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(
        make_service(options={"api_keys": (ApiKey("a key"),), "allowed_hosts": ("llm.example",)})
    ) as run:
        yield run


def ask(server: Running, head: str) -> str:
    """The first line and body of an answer to raw headers."""
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_every_path_is_refused_to_another_host(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    for path in [*paths, "/", "/nothing", "/openapi.json"]:
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            found = ask(server, f"{method} {path} HTTP/1.1\r\nHost: evil.example\r\n")
            assert found.startswith("HTTP/1.1 403"), (method, path)
    assert "host_not_allowed" in ask(server, "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n")


def test_headers_of_proxies_and_whole_addresses_do_not_help(server: Running) -> None:
    for line in (
        "Host: evil.example\r\nX-Forwarded-Host: localhost",
        "Host: evil.example\r\nForwarded: host=localhost",
        "Host: evil.example\r\nOrigin: http://localhost",
        "Host: evil.example\r\nAuthorization: Bearer a key",
    ):
        assert ask(server, f"GET /health HTTP/1.1\r\n{line}\r\n").startswith("HTTP/1.1 403")
    target = "GET http://localhost/health HTTP/1.1\r\nHost: evil.example\r\n"
    assert not ask(server, target).startswith("HTTP/1.1 200")
    assert ask(server, "GET /health HTTP/1.0\r\n").startswith("HTTP/1.1 200")
    assert ask(server, "GET /health HTTP/1.1\r\nHost: llm.example\r\n").startswith("HTTP/1.1 200")


def test_an_open_address_without_a_key_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    for host, key, warned in (
        ("127.0.0.1", None, False), ("localhost", None, False), ("::1", None, False),
        ("0.0.0.0", "k", False), ("0.0.0.0", None, True), ("::", None, True),
        ("192.168.1.7", None, True),
    ):  # fmt: skip
        warn_of_open_address(ServeOptions(host=host, api_keys=(ApiKey(key),) if key else ()))
        told = capsys.readouterr().err
        assert (f"warning: --host {host} without an API key" in told) == warned, host
        assert told.count("\n") == int(warned)
