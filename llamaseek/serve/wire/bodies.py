"""Request bodies: read within a size and a time, parsed as strict JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from llamaseek.errors import shorten
from llamaseek.serve.options import Limits, ServeOptions
from llamaseek.serve.wire.counting import count_json
from llamaseek.serve.wire.errors import ApiError

SMALL = 65_536
"""Bytes of a body that is parsed at once; larger ones are counted first, and parsed in a thread."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(request: Request, options: ServeOptions) -> bytes:
    """The body. Raises ApiError 413 for one that is too large, 408 for one that is too slow."""
    most = options.limits.body_bytes
    too_large = ApiError(413, f"body: is larger than the {most} bytes allowed", "body")
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length[:20]) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(options.body_timeout):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, "body: took too long to arrive", "body") from None
    return b"".join(parts)


def parse(body: bytes, limits: Limits) -> Any:
    """The JSON value that a body is, with nothing in it that JSON does not have.

    Raises ApiError 400 for text that is no UTF-8 or no JSON, a key given twice, NaN and Infinity,
    numbers that become infinite, half a surrogate pair, and for nesting deeper, or more values,
    than allowed.
    """
    if len(body) > SMALL:
        _check_counts(body, limits)
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=partial(_object, limits.object_keys),
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise ApiError(400, "body: is not UTF-8", "body") from None
    except RecursionError:
        raise ApiError(400, "body: is nested too deeply", "body") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"body: is not JSON: {error}", "body") from None
    except ValueError as error:
        raise ApiError(400, f"body: {error}", "body") from None
    if depth(value) > limits.json_depth:
        raise ApiError(400, f"body: is nested deeper than {limits.json_depth}", "body")
    if SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError(400, "body: contains a lone surrogate", "body") from None
    return value


def depth(value: Any) -> int:
    """How many objects and arrays a JSON value has inside one another."""
    found, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        found += 1
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [one for many in inner for one in many]
    return found


def _check_counts(body: bytes, limits: Limits) -> None:
    most = {
        "values": limits.json_values,
        "objects and arrays": limits.json_containers,
        "keys": limits.json_keys,
    }
    for counts in count_json(body):
        for (name, allowed), count in zip(most.items(), counts, strict=True):
            if count > allowed:
                raise ApiError(400, f"body: has more than {allowed} {name}", "body")


def _object(most: int, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > most:
        raise ValueError(f"an object has more than {most} keys")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{shorten(number, 40)} is too large a number")
    return value


class StrictRoute(APIRoute):
    """A route whose body is read and parsed by the functions above."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Hand the endpoint a request that parses its own way."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handler


class _StrictRequest(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await read_body(self, self.app.state.service.options)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body, limits = await self.body(), self.app.state.service.options.limits
            small = len(body) <= SMALL
            self._json = (
                parse(body, limits) if small else await asyncio.to_thread(parse, body, limits)
            )
        return self._json
