"""`/internals`: what the model does at one token of a conversation, for the chat page."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from torch import Tensor

from llamaseek.engine.forward.paged import bytes_per_token
from llamaseek.engine.forward.runner import home
from llamaseek.engine.internals import Internals, full_numbers, read_internals
from llamaseek.engine.request import SamplingParams
from llamaseek.errors import UserError, bad_value
from llamaseek.serve.routes.chat import check_keys, encode
from llamaseek.serve.service import Service
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.errors import ApiError
from llamaseek.serve.wire.fields import ChatFields, InternalsFields
from llamaseek.serve.wire.logprobs import token_text
from llamaseek.serve.wire.pieces import as_json
from llamaseek.serve.wire.tools import shown_tools
from llamaseek.text.chat import ChatOptions

TOP = 5  # next tokens a layer
DIGITS = 6
router = APIRouter(route_class=StrictRoute)


@router.post("/internals")
async def internals(request: Request, fields: InternalsFields) -> Response:
    """One layer's attention and experts at a token, what every layer would say, the cache."""
    service: Service = request.app.state.service
    limits, adapter = service.options.limits, service.adapter(fields.model)
    check(service, fields)
    ids = [*await prompt_of(service, fields), *await answer_ids(service, fields.answer)]
    token = len(ids) - 1 if fields.token is None else fields.token
    if token >= len(ids):
        raise bad_value("token", token, f"0 to {len(ids) - 1}")
    if token >= limits.internals_tokens:
        allowed = f"one of the first {limits.internals_tokens} tokens"
        raise bad_value("token", token, allowed)
    service.check(ids[: token + 1], SamplingParams(max_tokens=0), "messages")
    found = await look(service, ids[: token + 1], adapter)
    texts = [token_text(service.tokenizer, each) for each in ids[: limits.internals_tokens]]
    about = {"model": fields.model, "tokens": texts, "token": token, "count": len(ids)}
    return as_json({**about, **layer_of(found, fields.layer), **of_all(service, found)})


def check(service: Service, fields: InternalsFields) -> None:
    """Raise ApiError 403 beside a guard, and UserError for what this model does not have."""
    if service.guard is not None:
        raise ApiError(403, "this model has a guard, which would not see what the layers say")
    if service.engine.group is not None:
        raise UserError("model: is split over several ranks; look inside it on one device")
    layers = service.engine.model.config.num_hidden_layers
    if fields.layer >= layers:
        raise bad_value("layer", fields.layer, f"0 to {layers - 1}")


async def prompt_of(service: Service, fields: InternalsFields) -> list[int]:
    """The conversation's ids up to the answer, as `/v1/chat/completions` encodes it."""
    check_keys(fields.messages)
    chat = ChatFields(model=fields.model, messages=fields.messages, tools=fields.tools)
    tools = shown_tools(chat, service.tokenizer, service.options.limits)
    return await encode(service, fields.messages, tools, True, ChatOptions())


async def answer_ids(service: Service, texts: list[str]) -> list[int]:
    """The ids of an answer's tokens by their texts. UserError for a text that is no token's."""
    if not texts:
        return []
    known = await asyncio.to_thread(lambda: service.ids_of_texts)
    for place, text in enumerate(texts):
        if text not in known:
            raise bad_value(f"answer[{place}]", text, "a token's text as logprobs has it")
    return [known[text] for text in texts]


async def look(service: Service, ids: list[int], adapter: str) -> Internals:
    """Run the model over the ids, one request after another, so that answers go on between them.

    ApiError 429 where too many wait already.
    """
    if service.looking >= service.options.limits.internals:
        message = "too many requests look inside the model; try again later"
        raise ApiError(429, message, code="queue_full")
    service.looking += 1
    try:
        async with asyncio.timeout(service.options.timeout), service.look_turn:
            return await service.background.between_steps(partial(run, service, ids, adapter))
    finally:
        service.looking -= 1


def run(service: Service, ids: list[int], adapter: str) -> Internals:
    """The forward, in the engine's thread."""
    service.engine.adapters.all_rows(adapter)
    return read_internals(service.engine.model, ids, TOP, last=True)


def layer_of(found: Internals, layer: int) -> dict[str, Any]:
    """Attention (heads, tokens) and experts of a layer; no experts where it has none."""
    experts = None
    if layer in found.experts:
        chosen, gates = found.experts[layer]
        load = found.expert_load[layer].tolist()
        experts = {"chosen": chosen.tolist(), "gates": rounded(gates), "load": load}
    weights = rounded(found.attention[layer][:, 0])
    return {"layer": layer, "attention": weights, "experts": experts}


def of_all(service: Service, found: Internals) -> dict[str, Any]:
    """The likeliest next tokens of every layer, and what a token takes in the engine's cache."""
    engine, tokenizer = service.engine, service.tokenizer
    says = [
        [[token_text(tokenizer, token), share] for token, share in zip(*row, strict=True)]
        for row in zip(found.layers[:, 0].tolist(), rounded(found.probabilities[:, 0]), strict=True)
    ]
    shapes, dtype = engine.model.cache_shapes(), home(engine.model)[0]
    cache = {
        "latent": len(shapes[0].widths) == 1,
        "bytes_per_token": bytes_per_token(shapes, dtype, engine.options.cache_dtype),
        "full_bytes_per_token": full_numbers(engine.model, len(shapes)) * dtype.itemsize,
    }
    return {"layers": says, "expert_layers": sorted(found.experts), "cache": cache}


def rounded(values: Tensor) -> list[Any]:
    """Numbers short enough to send."""
    found: list[Any] = values.double().round(decimals=DIGITS).tolist()
    return found
