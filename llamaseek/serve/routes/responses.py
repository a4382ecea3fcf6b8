"""`/v1/responses`: OpenAI's newer API over the same chats, without any state on the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from llamaseek.serve.routes.protocol import Reply, begin_reply
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.pieces import as_json
from llamaseek.serve.wire.response_events import ResponseWriter
from llamaseek.serve.wire.responses import ResponsesFields, read_responses
from llamaseek.serve.wire.streaming import as_named_events, unless_gone

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/responses")
async def responses(request: Request, fields: ResponsesFields) -> Response:
    """Answer a conversation of items."""
    chat, names = read_responses(fields)
    reply = await begin_reply(request.app.state.service, chat, "resp", names)
    writer = ResponseWriter(fields, reply.id, reply.created)
    if fields.stream:
        return as_named_events(events(reply, writer), writer.failed)
    return as_json(await unless_gone(request, whole(reply, writer)))


async def events(reply: Reply, writer: ResponseWriter) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream."""
    for event in writer.start():
        yield event
    async for part in reply.parts():
        for event in writer.add(part):
            yield event
    yield writer.end(reply.counts())


async def whole(reply: Reply, writer: ResponseWriter) -> dict[str, Any]:
    """The response as one object."""
    async for part in reply.parts():
        for _ in writer.add(part):
            pass
    return writer.body(reply.counts())
