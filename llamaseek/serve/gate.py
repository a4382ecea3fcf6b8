"""Middleware of the routes: API keys with their limits, and the access log.

A line a request: method, route, status, time. No address, no body, no key, nothing users wrote.
"""

from __future__ import annotations

import logging
import time
import traceback
from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamaseek.serve.callers import Callers, KeyOverLimit
from llamaseek.serve.hosts import is_allowed
from llamaseek.serve.service import Service
from llamaseek.serve.wire.errors import ApiError, as_api_error, respond
from llamaseek.serve.wire.streaming import ClientGone

log = logging.getLogger("llamaseek.serve")
VERSIONED = frozenset(
    {"chat", "completions", "embeddings", "messages", "models", "responses", "score"}
)
"""What stands after `/v1`, and is found without it, as some clients ask."""
OPEN = frozenset({"/health", "/ready"})
CLIENT_GONE = 499  # nginx's number for a client that went away


class Gate:
    """Outermost layer of the app."""

    def __init__(self, app: ASGIApp, service: Service, open_paths: frozenset[str] = OPEN) -> None:
        self.app, self.service, self.open = app, service, open_paths
        self.callers = Callers(service.options.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse whom `_let_in` does; log and count what was answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 500, False
        method = scope["method"]
        scope = as_routed(scope)

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status, sent = message["status"], True
            await send(message)

        try:
            with self._let_in(scope):
                await self.app(scope, receive, watched)
        except ClientGone:
            status = CLIENT_GONE
        except Exception as error:
            if not isinstance(error, ApiError | KeyOverLimit):
                _log_error(error)
            if not sent:
                await respond(as_api_error(error), scope["path"])(scope, receive, watched)
        self._count(scope, method, status, time.perf_counter() - start)

    def _let_in(self, scope: Scope) -> AbstractContextManager[object]:
        """What holds while a request is answered. ApiError, KeyOverLimit for one that may not be.

        Requests that ask for work count against their key's limits, those that look do not.
        """
        options, headers = self.service.options, Headers(scope=scope)
        if not is_allowed(headers.getlist("host"), options.host, options.allowed_hosts):
            message = "the Host header names another server; allow it with --allowed-host"
            raise ApiError(403, message, code="host_not_allowed")
        if not self.callers or scope["path"] in self.open:
            return nullcontext()
        caller = self.callers.find(headers)
        if caller is None:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        return caller.at_work() if scope["method"] == "POST" else nullcontext()

    def _count(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path_format", "other")
        self.service.metrics.responses.labels(route, str(status)).inc()
        if status in REASONS and scope["path"] not in OPEN:
            self.service.metrics.refusals.labels(REASONS[status]).inc()
        word = method[:10] if method.isalpha() else "?"
        log.info("%s %s %d %.0f ms", word, route, status, 1000 * seconds)


def as_routed(scope: Scope) -> Scope:
    """A request as the routes know it: of a path with its version, `HEAD` as `GET`.

    The HTTP server leaves out the body of an answer to `HEAD`.
    """
    path, method = scope["path"], scope["method"]
    bare = path.lstrip("/").partition("/")[0] in VERSIONED
    asked = "GET" if method == "HEAD" else method
    return {**scope, "path": f"/v1{path}" if bare else path, "method": asked}


REASONS = {401: "key", 403: "host or guard", 413: "size", 429: "queue", 503: "unavailable"}


def _log_error(error: Exception) -> None:
    """Where it happened, but not its message, which may hold what a user wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames[-5:]))
    log.error("%s at %s", type(error).__name__, places)
