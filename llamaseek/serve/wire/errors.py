"""Errors in the format of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from llamaseek.engine.background import EngineDown
from llamaseek.engine.scheduler import QueueFull
from llamaseek.errors import UserError, shorten
from llamaseek.serve.callers import KeyOverLimit
from llamaseek.serve.wire.fields import IDLE

LONGEST = 500  # characters of a message
RETRY_AFTER = 1  # seconds, in answers of status 429
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Types of errors in Anthropic's API; the others are `invalid_request_error`."""
FIELD = re.compile(r"([\w.\[\]-]+): ")


class ApiError(HTTPException):
    """A response with an error status and OpenAI's fields."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        headers = {"Retry-After": str(RETRY_AFTER)} if status in (429, 503) else None
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """The error as JSON has it."""
        return error_body(self.status_code, self.detail, self.param, self.code)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object; a few hundred characters whatever was sent."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = None if param is None else shorten(clean(param), 100)
    message = shorten(clean(message), LONGEST)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def clean(text: str) -> str:
    """The text as UTF-8 can hold it: halves of surrogate pairs become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_api_error(error: Exception) -> ApiError:
    """The API error of an exception; an unknown one is a 500 without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        found = FIELD.match(str(error))
        return ApiError(400, str(error), found[1] if found else None)
    if isinstance(error, QueueFull):
        return ApiError(429, "too many requests are waiting; try again later", code="queue_full")
    if isinstance(error, KeyOverLimit):
        limited = ApiError(429, str(error), code="rate_limit_exceeded")
        limited.headers = {"Retry-After": str(error.wait)}
        return limited
    if isinstance(error, EngineDown):
        return ApiError(503, str(error), code="unavailable")
    if isinstance(error, TimeoutError):
        return ApiError(504, "the answer took longer than the server allows", code="timeout")
    return ApiError(500, "the server failed to answer this request", code="internal")


def respond(error: ApiError, path: str) -> JSONResponse:
    """The error as a response, in the format of the protocol that is spoken at a path."""
    body = error.body()
    if "/messages" in path:
        body = anthropic_body(error)
    elif path.startswith("/api/"):
        body = {"error": body["error"]["message"]}
    return JSONResponse(body, error.status_code, error.headers)


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """The error as Anthropic's API has it, with OpenAI's `param` and `code` beside."""
    inner = error.body()["error"]
    kind = ANTHROPIC.get(error.status_code, "invalid_request_error")
    return {"type": "error", "error": {**inner, "type": kind}}


def of_validation(error: RequestValidationError) -> ApiError:
    """What is wrong with the first wrong field of a request, by the name that it has there.

    Of a field that may be of several types, the type that fits furthest is meant.
    """
    errors = error.errors()
    places = [place_in(error.body, each) for each in errors]
    alike = [n for n, place in enumerate(places) if place[:1] == places[0][:1]]
    furthest = max(alike, key=lambda n: (len(places[n]), errors[n]["type"] == "literal_error"))
    first, place = errors[furthest], places[furthest]
    param = path_of(place) or "body"
    if first["type"] == "extra_forbidden":
        idle = IDLE.get(str(place[-1]), ())
        allowed = f"; allowed: {' or '.join(map(json.dumps, idle))}" if idle else ""
        message = f"{param}: is not supported by this server{allowed}"
        return ApiError(400, message, param, "unsupported")
    if not place:
        kind = "Content-Type: application/json"
        return ApiError(400, f"body: must be a JSON object, sent with {kind}", "body")
    return ApiError(400, f"{param}: {first['msg']}", param)


def place_in(body: Any, error: Mapping[str, Any]) -> list[str | int]:
    """Where in a body pydantic found an error, without the types that it tried."""
    found: list[str | int] = []
    parts = [part for part in error["loc"] if part != "body"]
    for part in parts:
        inside = range(len(body)) if isinstance(body, list) else body
        if isinstance(inside, dict | range) and part in inside:
            body = body[part]
            found.append(part)
    return [*found, parts[-1]] if error["type"] == "missing" and parts else found


def path_of(place: Sequence[str | int]) -> str:
    """As in `messages[0].content`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")


def _headers(given: Mapping[str, str] | None) -> dict[str, str]:
    return {} if given is None else dict(given)


def install(app: FastAPI) -> None:
    """Answer all errors of an app in OpenAI's shape."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(of_validation(error), request.url.path)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        if isinstance(error, ApiError):
            return respond(error, request.url.path)
        known = ApiError(error.status_code, str(error.detail))
        known.headers = {**_headers(known.headers), **_headers(error.headers)}
        return respond(known, request.url.path)

    async def raised(request: Request, error: Exception) -> JSONResponse:
        return respond(as_api_error(error), request.url.path)

    for kind in (UserError, QueueFull, EngineDown, TimeoutError):
        app.add_exception_handler(kind, raised)
