"""`/v1/score`: what a reward model gives an answer, in vLLM's format."""

from __future__ import annotations

import time
from typing import Any

import torch
from fastapi import APIRouter, Request, Response

from llamaseek.errors import UserError
from llamaseek.serve.routes.chat import encode
from llamaseek.serve.routes.completions import prompts_of
from llamaseek.serve.routes.embeddings import last_states
from llamaseek.serve.service import Service, new_id
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.conversation import written_as
from llamaseek.serve.wire.fields import ScoreFields
from llamaseek.serve.wire.pieces import as_json
from llamaseek.serve.wire.streaming import unless_gone
from llamaseek.text.chat import ChatOptions

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/score")
async def score(request: Request, fields: ScoreFields) -> Response:
    """A number for each pair of a question and an answer."""
    return as_json(await unless_gone(request, scored(request.app.state.service, fields)))


async def scored(service: Service, fields: ScoreFields) -> dict[str, Any]:
    """Read each conversation's last hidden state, and the model's score of it."""
    adapter, model = service.adapter(fields.model), service.engine.model
    if not model.config.is_reward_model:
        raise UserError("model: is no reward model; `llamaseek reward` trains one")
    prompts = []
    for question, answer in pairs(fields, service.options.limits.prompts):
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        with written_as({"messages": "text_1"}):
            prompts.append(await encode(service, talk, [], False, ChatOptions()))
    states = await last_states(service, prompts, adapter, fields.user, "text_1")
    weight = model.score.weight
    hidden = torch.tensor(states, dtype=weight.dtype, device=weight.device)
    with torch.inference_mode():
        numbers = model.score(hidden).tolist()
    tokens = sum(map(len, prompts))
    return {
        "id": new_id("score"),
        "object": "list",
        "created": int(time.time()),
        "model": fields.model,
        "data": [{"index": n, "object": "score", "score": each} for n, each in enumerate(numbers)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def pairs(fields: ScoreFields, most: int) -> list[tuple[str, str]]:
    """Each question with its answer; one question goes with every answer."""
    first = [str(each) for each in prompts_of(fields.text_1, most, "text_1")]
    second = [str(each) for each in prompts_of(fields.text_2, most, "text_2")]
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second):
        raise UserError(
            f"text_2: has {len(second)} entries for {len(first)} of text_1; as many are allowed, "
            "or one text_1 for all"
        )
    return list(zip(first, second, strict=True))
