"""`/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/version`: Ollama's API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from llamaseek import __version__
from llamaseek.serve.routes.protocol import Reply, begin_reply
from llamaseek.serve.service import Service
from llamaseek.serve.wire.blocks import AnswerPart
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.errors import ApiError
from llamaseek.serve.wire.ollama import (
    OllamaChatFields,
    OllamaGenerateFields,
    OllamaShowFields,
    OllamaWriter,
    base_name,
    read_ollama,
)
from llamaseek.serve.wire.params import at_most
from llamaseek.serve.wire.pieces import as_json, dumps
from llamaseek.serve.wire.streaming import as_stream, unless_gone
from llamaseek.text.chat import TEMPLATE
from llamaseek.text.parse import family_of

router = APIRouter(route_class=StrictRoute, prefix="/api", include_in_schema=False)


@router.post("/chat")
async def chat(request: Request, fields: OllamaChatFields) -> Response:
    """Answer a conversation."""
    return await answer(request, fields)


@router.post("/generate")
async def generate(request: Request, fields: OllamaGenerateFields) -> Response:
    """Answer one message."""
    return await answer(request, fields)


async def answer(request: Request, fields: OllamaChatFields | OllamaGenerateFields) -> Response:
    """As lines of JSON, or as one object."""
    service: Service = request.app.state.service
    if fields.options is not None and fields.options.num_ctx is not None:
        at_most("options.num_ctx", fields.options.num_ctx, service.engine.context)
    talk, names = read_ollama(fields)
    reply = await begin_reply(service, talk, "ollama", names)
    writer = OllamaWriter(fields.model, isinstance(fields, OllamaChatFields))
    if not fields.stream:
        return as_json(await unless_gone(request, whole(reply, writer)))
    return as_stream(lines(reply, writer), _line, _failed, media_type="application/x-ndjson")


def _line(value: dict[str, Any]) -> str:
    return dumps(value) + "\n"


def _failed(error: ApiError) -> dict[str, Any]:
    return {"error": error.body()["error"]["message"]}


async def lines(reply: Reply, writer: OllamaWriter) -> AsyncIterator[dict[str, Any]]:
    """The lines of a stream."""
    async for part in reply.parts():
        yield writer.line(part)
    yield writer.end(reply.counts())


async def whole(reply: Reply, writer: OllamaWriter) -> dict[str, Any]:
    """The answer as one object."""
    parts = [part async for part in reply.parts()]
    joined = AnswerPart(
        "".join(part.reasoning for part in parts),
        "".join(part.content for part in parts),
        [call for part in parts for call in part.calls],
        next((part.refusal for part in parts if part.refusal is not None), None),
        parts[-1].finish,
    )
    line = writer.line(joined)
    return writer.end(reply.counts()) | {key: line[key] for key in line if key != "done"}


@router.get("/tags")
async def tags(request: Request) -> dict[str, Any]:
    """The models that may be asked for."""
    service: Service = request.app.state.service
    return {"models": [{"name": name, **described(service, name)} for name in service.models]}


@router.post("/show")
async def show(request: Request, fields: OllamaShowFields) -> dict[str, Any]:
    """One of them: its template, its kind, and the length of its context."""
    service: Service = request.app.state.service
    service.adapter(base_name(fields.model))
    kind = described(service, fields.model)["details"]["family"]
    tools = family_of(service.tokenizer) != TEMPLATE
    context = {"general.architecture": kind, f"{kind}.context_length": service.engine.context}
    return {
        **described(service, fields.model),
        "template": service.tokenizer.chat_template or "",
        "model_info": context,
        "capabilities": ["completion", *(["tools"] if tools else [])],
    }


@router.get("/version")
async def version() -> dict[str, Any]:
    """Of this server."""
    return {"version": __version__}


def described(service: Service, name: str) -> dict[str, Any]:
    """A model as Ollama lists it; `size` is that of its weights in memory, in bytes."""
    weights = list(service.engine.model.parameters())
    kind = service.engine.model.config.family
    started = datetime.fromtimestamp(service.started, UTC).isoformat().replace("+00:00", "Z")
    return {
        "model": name,
        "modified_at": started,
        "size": sum(each.numel() * each.element_size() for each in weights),
        "digest": "",
        "details": {"format": "safetensors", "family": kind, "families": [kind]},
    }
