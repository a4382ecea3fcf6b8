"""`/tokenize`, `/detokenize`, `/tokenizer_info`: the tokenizer, for clients that count tokens."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from llamaseek.errors import UserError, bad_value
from llamaseek.serve.routes.chat import encode
from llamaseek.serve.service import Service
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.fields import DetokenizeFields, TokenizeFields
from llamaseek.serve.wire.pieces import LongList, as_json
from llamaseek.text.chat import ChatOptions

router = APIRouter(route_class=StrictRoute)


@router.post("/tokenize")
async def tokenize(request: Request, fields: TokenizeFields) -> Response:
    """The ids of a text, or of a conversation.

    A text that is as a whole the name of a special token is that token: so clients learn its id.
    """
    service: Service = request.app.state.service
    if fields.model is not None:
        service.adapter(fields.model)
    if (fields.prompt is None) == (fields.messages is None):
        raise UserError("prompt: give either a prompt or messages")
    if fields.messages is not None:
        options = ChatOptions(
            chat_template_kwargs=fields.chat_template_kwargs or {},
            continue_final_message=fields.continue_final_message,
        )
        opened = fields.add_generation_prompt
        ids = await encode(service, fields.messages, [], opened, options)
    elif fields.add_special_tokens:
        ids = await service.encode_prompt(fields.prompt or "")
    elif (special := service.special_id(fields.prompt or "")) is not None:
        ids = [special]
    else:
        ids = await service.encode(fields.prompt or "")
    counts = {"count": len(ids), "max_model_len": service.engine.context}
    return as_json({"tokens": LongList(ids), **counts})


@router.post("/detokenize")
async def detokenize(request: Request, fields: DetokenizeFields) -> Response:
    """The text of ids, special tokens spelled out."""
    service: Service = request.app.state.service
    if fields.model is not None:
        service.adapter(fields.model)
    size = service.engine.model.config.vocab_size
    largest = max(fields.tokens, default=0)
    if largest >= size:
        raise bad_value("tokens", largest, f"ids from 0 to {size - 1}")
    decode = service.tokenizer.decode
    return as_json({"prompt": await asyncio.to_thread(decode, fields.tokens, skip_special=False)})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """The special tokens by their names, and the chat template."""
    service: Service = request.app.state.service
    named = service.tokenizer.named_tokens
    wanted = {name: named.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    return {
        **wanted,
        "chat_template": service.tokenizer.chat_template,
        "vocab_size": service.tokenizer.vocab_size,
        "max_model_len": service.engine.context,
    }
