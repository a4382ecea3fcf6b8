"""Middleware of the routes: the API key and the access log.

A line a request: method, route, status, time. No address, no body, no key, nothing users wrote.
"""

from __future__ import annotations

import hmac
import logging
import time
import traceback

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamaseek.serve.hosts import is_allowed
from llamaseek.serve.service import Service
from llamaseek.serve.wire.errors import ApiError, as_api_error, respond
from llamaseek.serve.wire.streaming import ClientGone

log = logging.getLogger("llamaseek.serve")
VERSIONED = frozenset({"chat", "completions", "embeddings", "messages", "models", "responses"})
"""What stands after `/v1`, and is found without it, as some clients ask."""
OPEN = frozenset({"/health", "/ready"})
CLIENT_GONE = 499  # nginx's number for a client that went away


class Gate:
    """Outermost layer of the app."""

    def __init__(self, app: ASGIApp, service: Service, open_paths: frozenset[str] = OPEN) -> None:
        self.app, self.service, self.open = app, service, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a wrong key; log and count what was answered."""
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
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, watched)
            else:
                await respond(refusal, scope["path"])(scope, receive, watched)
        except ClientGone:
            status = CLIENT_GONE
        except Exception as error:
            _log_error(error)
            if not sent:
                await respond(as_api_error(error), scope["path"])(scope, receive, watched)
        self._count(scope, method, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not let in."""
        options = self.service.options
        if not is_allowed(
            Headers(scope=scope).getlist("host"), options.host, options.allowed_hosts
        ):
            message = "the Host header names another server; allow it with --allowed-host"
            return ApiError(403, message, code="host_not_allowed")
        if not self._may(scope):
            return ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        return None

    def _may(self, scope: Scope) -> bool:
        key = self.service.options.api_key
        if key is None or scope["path"] in self.open:
            return True
        headers = Headers(scope=scope)
        return any(
            len(given := headers.getlist(name)) == 1
            and hmac.compare_digest(given[0].encode("latin-1", "replace"), wanted.encode())
            for name, wanted in (("authorization", f"Bearer {key}"), ("x-api-key", key))
        )

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
