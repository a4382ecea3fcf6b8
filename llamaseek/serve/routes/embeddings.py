"""`/v1/embeddings`: the final hidden state at a text's last token, scaled to length 1."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from llamaseek.engine.request import SamplingParams
from llamaseek.serve.metrics import Clock
from llamaseek.serve.routes.completions import prompts_of
from llamaseek.serve.service import Service
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.fields import EmbeddingFields
from llamaseek.serve.wire.pieces import LongList, as_json
from llamaseek.serve.wire.streaming import deltas_of, unless_gone

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/embeddings")
async def embeddings(request: Request, fields: EmbeddingFields) -> Response:
    """A vector for each text: the hidden state after the final norm at the last token."""
    return as_json(await unless_gone(request, embed(request.app.state.service, fields)))


async def embed(service: Service, fields: EmbeddingFields) -> dict[str, Any]:
    """Run the texts through the model and read its last hidden states."""
    adapter = service.adapter(fields.model)
    given = prompts_of(fields.input, service.options.limits.prompts, "input")
    prompts = [await service.encode_prompt(one, "input") for one in given]
    states = await last_states(service, prompts, adapter, fields.user, "input")
    data = [
        {"object": "embedding", "index": n, "embedding": vector(state, fields)}
        for n, state in enumerate(states)
    ]
    tokens = sum(map(len, prompts))
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": fields.model, "data": data, "usage": counts}


async def last_states(
    service: Service, prompts: list[list[int]], adapter: str, user: str | None, name: str
) -> list[list[float]]:
    """The hidden state (D) at the last token of each prompt; `name` is what they are called."""
    params = SamplingParams(max_tokens=0, embed=True)
    requests, stream = service.submit(prompts, params, adapter, user, name)
    found: dict[int, list[float]] = {}
    async with asyncio.timeout(service.options.timeout):
        async for delta in deltas_of(stream, Clock(service.metrics)):
            if delta.embedding is not None:
                found[delta.request] = delta.embedding
    return [found[request.id] for request in requests]


def vector(numbers: list[float], fields: EmbeddingFields) -> LongList | str:
    """Scaled to length 1; as numbers, or as base64 of little-endian float32."""
    found = np.asarray(numbers, "<f4")
    found = found / max(float(np.linalg.norm(found)), 1e-12)
    if fields.encoding_format == "base64":
        return base64.b64encode(found.astype("<f4").tobytes()).decode()
    return LongList(map(float, found))
