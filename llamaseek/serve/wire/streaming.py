"""Server-sent events, and work that is canceled when its client disconnects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import chain
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from llamaseek.engine.background import Stream
from llamaseek.engine.request import Delta
from llamaseek.serve.metrics import Clock
from llamaseek.serve.wire.errors import ApiError, as_api_error
from llamaseek.serve.wire.pieces import LongList, dumps, json_pieces

log = logging.getLogger("llamaseek.serve")
T = TypeVar("T")
DONE = "data: [DONE]\n\n"


class ClientGone(Exception):
    """The client has disconnected."""


async def deltas_of(
    stream: Stream, clock: Clock, held_by: str = "response_format"
) -> AsyncIterator[Delta]:
    """A stream's deltas one by one. ApiError for an answer that failed.

    `held_by` is the field that an answer's constraint came from. Readers set the time limit, since
    it bounds what they do with a delta, too.
    """
    clock.answers = sum(map(len, stream.unfinished.values()))
    try:
        async for found in stream:
            clock.see(found)
            for delta in found:
                if delta.error is not None:
                    raise failure(delta.error, held_by)
                yield delta
        clock.end()
    finally:
        stream.close()


def failure(reason: str, held_by: str) -> ApiError:
    """The API error of a failed answer; errors of a constraint name the request's field."""
    if "shutting down" in reason or "engine has failed" in reason:
        return ApiError(503, reason.removeprefix("RuntimeError: constraint: "), code="unavailable")
    if reason.startswith("RuntimeError: constraint"):
        return ApiError(400, reason.removeprefix("RuntimeError: "), held_by)
    log.error("an answer failed: %s", reason.partition(":")[0])
    return ApiError(500, "the server failed to answer this request", code="internal")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; it is cancelled, and ClientGone raised, when the client disconnects."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(data: Any, name: str | None = None) -> str | Iterator[str]:
    """One server-sent event; in pieces if it has a long list."""
    start = "data: " if name is None else f"event: {name}\ndata: "
    try:
        return f"{start}{dumps(data, default=_is_long)}\n\n"
    except _LongData:
        return chain((start,), json_pieces(data), ("\n\n",))


class _LongData(Exception):
    """There is a long list in an event."""


def _is_long(value: Any) -> Any:
    assert isinstance(value, LongList)
    raise _LongData


def as_named_events(
    chunks: AsyncIterator[dict[str, Any]], failed: Callable[[ApiError], dict[str, Any]]
) -> StreamingResponse:
    """Chunks as events of their `type`; `failed` makes the one of an error."""
    return as_stream(chunks, lambda chunk: event(chunk, chunk["type"]), failed)


def as_events(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Chunks as events, `[DONE]` at the end; an error becomes an event of its own."""
    return as_stream(chunks, event, ApiError.body, DONE)


def as_stream(
    chunks: AsyncIterator[dict[str, Any]],
    write: Callable[[dict[str, Any]], str | Iterator[str]],
    failed: Callable[[ApiError], dict[str, Any]],
    end: str = "",
    media_type: str = "text/event-stream",
) -> StreamingResponse:
    """A response that sends each chunk as it is made; an error becomes a chunk of its own."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                made = write(chunk)
                if isinstance(made, str):
                    yield made
                    continue
                async for piece in iterate_in_threadpool(made):
                    yield piece
        except (ApiError, TimeoutError, Exception) as error:
            yield "".join(write(failed(as_api_error(error))))
        if end:
            yield end

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type=media_type, headers=headers)


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """How many tokens were given and said."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
