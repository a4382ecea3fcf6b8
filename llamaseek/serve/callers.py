"""What each API key uses of a server, held to its limits.

A bucket holds what a key may use at once, and fills within a minute. Tokens are charged when they
are known, so the last request may overdraw it.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.datastructures import Headers

from llamaseek.serve.keys import LIMITED, ApiKey

MINUTE = 60.0
HEADERS = {"authorization": b"Bearer ", "x-api-key": b""}
"""Where a key may be sent, and what stands before it."""


class KeyOverLimit(Exception):
    """A key has to wait so many seconds."""

    def __init__(self, name: str, limit: int, wait: int) -> None:
        may = f"this API key may have {limit} {LIMITED[name]} ({name})"
        super().__init__(f"{may}; try again in {wait} s")
        self.wait = wait


class Bucket:
    """So much a minute; all of it at once after a minute of rest."""

    def __init__(self, limit: int) -> None:
        self.limit, self.left, self.seen = limit, float(limit), time.monotonic()

    def wait(self) -> float:
        """The seconds until there is one in it; 0 where there is."""
        now = time.monotonic()
        self.left = min(self.limit, self.left + (now - self.seen) * self.limit / MINUTE)
        self.seen = now
        return max(0.0, 1 - self.left) * MINUTE / self.limit

    def take(self, count: int) -> None:
        """What was used; there may be less in it."""
        self.left -= count


class Caller:
    """One key's use of the server. For the event loop alone."""

    def __init__(self, key: ApiKey) -> None:
        self.key, limits = key.key.encode(), key.limits
        self.most = limits.max_parallel_requests
        self.at_once = 0
        self.buckets = {
            name: Bucket(limit)
            for name in ("rpm_limit", "tpm_limit")
            if (limit := getattr(limits, name)) is not None
        }

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While a request of this key is answered; KeyOverLimit where the key has to wait."""
        self._check()
        self._take("rpm_limit", 1)
        self.at_once += 1
        token = _CALLER.set(self)
        try:
            yield
        finally:
            _CALLER.reset(token)
            self.at_once -= 1

    def _check(self) -> None:
        if self.most is not None and self.at_once >= self.most:
            raise KeyOverLimit("max_parallel_requests", self.most, 1)
        for name, bucket in self.buckets.items():
            if wait := bucket.wait():
                raise KeyOverLimit(name, bucket.limit, math.ceil(wait))

    def charge(self, tokens: int) -> None:
        """Tokens that were read or said for it."""
        self._take("tpm_limit", tokens)

    def _take(self, name: str, count: int) -> None:
        if name in self.buckets:
            self.buckets[name].take(count)


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def current_caller() -> Caller | None:
    """Whose request this task answers; None on a server without keys."""
    return _CALLER.get()


class Callers:
    """All keys of a server; false where it has none."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._callers = [Caller(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._callers)

    def find(self, headers: Headers) -> Caller | None:
        """Whose key is sent; what is sent is compared with every key, in constant time."""
        found = None
        for name, before in HEADERS.items():
            given = headers.getlist(name)
            for caller in self._callers if len(given) == 1 else ():
                sent = given[0].encode("latin-1", "replace")
                if hmac.compare_digest(sent, before + caller.key):
                    found = caller
        return found
