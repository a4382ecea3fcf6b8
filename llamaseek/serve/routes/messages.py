"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API over the same chats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from llamaseek.serve.routes.chat import prompt_of
from llamaseek.serve.routes.protocol import Reply, begin_reply
from llamaseek.serve.service import Service
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.conversation import written_as
from llamaseek.serve.wire.errors import anthropic_body
from llamaseek.serve.wire.message_events import MessageWriter
from llamaseek.serve.wire.messages import CountTokensFields, MessagesFields, read_messages
from llamaseek.serve.wire.pieces import as_json
from llamaseek.serve.wire.streaming import as_named_events, unless_gone
from llamaseek.serve.wire.tools import shown_tools

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/messages")
async def messages(request: Request, fields: MessagesFields) -> Response:
    """Answer a conversation of messages and content blocks."""
    chat, names = read_messages(fields)
    reply = await begin_reply(request.app.state.service, chat, "msg", names)
    writer = MessageWriter(reply.id, fields.model, fields.max_tokens)
    if fields.stream:
        return as_named_events(events(reply, writer), anthropic_body)
    return as_json(await unless_gone(request, whole(reply, writer)))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, fields: CountTokensFields) -> dict[str, Any]:
    """How many tokens a request to `/v1/messages` gives the model."""
    service: Service = request.app.state.service
    chat, names = read_messages(fields)
    service.adapter(fields.model)
    with written_as(names):
        tools = shown_tools(chat, service.tokenizer, service.options.limits)
        return {"input_tokens": len(await prompt_of(service, chat, tools))}


async def events(reply: Reply, writer: MessageWriter) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream."""
    yield writer.start(reply.counts())
    async for part in reply.parts():
        for event in writer.add(part):
            yield event
    for event in writer.end(reply.counts(), reply.stop_reason):
        yield event


async def whole(reply: Reply, writer: MessageWriter) -> dict[str, Any]:
    """The message as one object."""
    async for part in reply.parts():
        for _ in writer.add(part):
            pass
    return writer.body(reply.counts(), reply.stop_reason)
