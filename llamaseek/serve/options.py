"""Options of the server: address, API key, and limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from llamaseek.errors import bad_value
from llamaseek.serve.hosts import read_names
from llamaseek.serve.keys import ApiKey, check_keys

MEGABYTE = 1 << 20
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s@]+")
"""What browsers send as the `Origin` of a page; `null` for one that was opened from a file."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request, and of all requests together."""

    body_bytes: int = 4 * MEGABYTE
    json_depth: int = 64
    json_values: int = 500_000
    json_containers: int = 20_000  # objects and arrays
    json_keys: int = 50_000
    object_keys: int = 4096  # of one object
    prompts: int = 64  # in one request to /v1/completions or /v1/embeddings
    choices: int = 16  # n
    answers: int = 128  # prompts times n
    stops: int = 16
    stop_length: int = 256
    logprobs: int = 20
    messages: int = 1024
    tools: int = 128
    schema_bytes: int = 65_536
    schema_depth: int = 32
    compile_seconds: float = 5.0  # by the clock; it may use STEP_CPU of processor time
    compiling: int = 32  # constraints at once
    internals_tokens: int = 512  # of a text that /internals runs the model over
    internals: int = 4  # requests to it at once; they are answered one after another


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server runs. Times are in seconds.

    `timeout` bounds a request as a whole, `guard_timeout` one verdict of a guard, `body_timeout`
    the arrival of a body, `drain` how long answers under way may take after a signal to stop.
    `guard_system` has the guard judge system messages as the user's.
    `allowed_hosts` are `Host` headers that are accepted beside the server's own names. `cors` are
    the origins of web pages that may read answers, as `https://example.com`; `*` is all.
    Raises UserError for a value that is not allowed.
    """

    name: str = "llamaseek"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[ApiKey, ...] = ()
    timeout: float = 600.0
    body_timeout: float = 30.0
    drain: float = 30.0
    limits: Limits = field(default_factory=Limits)
    guard_timeout: float = 30.0
    guard_system: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed_hosts", read_names(self.allowed_hosts, "--allowed-host"))
        for origin in self.cors:
            if not ORIGIN.fullmatch(origin):
                raise bad_value("--cors", origin, "an origin such as https://example.com, or *")
        if not 0 <= self.port <= 65535:
            raise bad_value("--port", self.port, "a number from 0 to 65535")
        check_keys(self.api_keys)
        for name in ("timeout", "guard_timeout", "body_timeout", "drain"):
            if not 0 < getattr(self, name) < float("inf"):
                raise bad_value(f"--{name.replace('_', '-')}", getattr(self, name), "above 0")
