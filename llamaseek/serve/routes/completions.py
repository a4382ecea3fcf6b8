"""`/v1/completions`: continuations of texts or token ids, one or a batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from llamaseek.engine.background import Stream
from llamaseek.engine.request import Delta, Logprob, SamplingParams
from llamaseek.engine.request import Request as EngineRequest
from llamaseek.errors import UserError, bad_value
from llamaseek.serve.metrics import Clock
from llamaseek.serve.service import Service, new_id
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.errors import ApiError
from llamaseek.serve.wire.fields import CompletionFields
from llamaseek.serve.wire.logprobs import CompletionLogprobs
from llamaseek.serve.wire.params import at_most, check_stream_options, constraint_of, sampling
from llamaseek.serve.wire.pieces import as_json
from llamaseek.serve.wire.streaming import as_events, deltas_of, unless_gone, usage
from llamaseek.text.tokenizer import Tokenizer

DEFAULT_TOKENS = 16  # OpenAI's
router = APIRouter(route_class=StrictRoute)


@dataclass
class Choice:
    """One answer of a completion: what was generated since the last chunk."""

    index: int
    prompt: list[int]
    logprobs: CompletionLogprobs
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scores: list[Logprob | None] = field(default_factory=list)
    finish: str | None = None
    generated: int = 0

    def add(self, delta: Delta) -> None:
        """Add a delta of the engine."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.scores += delta.logprobs or []
        self.finish = delta.finish
        self.generated += len(delta.tokens)

    def tell(self, scored: bool) -> dict[str, Any]:
        """The new part, as a chunk of the API."""
        logprobs = self.logprobs.of(self.tokens, self.scores) if scored else None
        chunk = {
            "index": self.index,
            "text": self.text,
            "logprobs": logprobs,
            "finish_reason": self.finish,
        }
        self.text, self.tokens, self.scores = "", [], []
        return chunk


@dataclass
class CompletionJob:
    """A running request to this endpoint."""

    service: Service
    fields: CompletionFields
    requests: list[EngineRequest]
    stream: Stream
    clock: Clock
    choices: dict[tuple[int, int], Choice]
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=lambda: int(time.time()))
    cached: int = 0

    @property
    def scored(self) -> bool:
        """Whether log-probabilities are wanted."""
        return self.fields.logprobs is not None

    async def grow(self) -> AsyncIterator[Choice]:
        """The choices as they grow; TimeoutError."""
        async with asyncio.timeout(self.service.options.timeout):
            async for delta in deltas_of(self.stream, self.clock):
                if delta.prompt_logprobs is not None:
                    self._echo_scores(delta.request, delta.prompt_logprobs)
                choice = self.choices[delta.request, delta.index]
                choice.add(delta)
                self._end_of_one(choice)
                yield choice

    def _end_of_one(self, choice: Choice) -> None:
        """An only token that ends the text was kept for its score; see `params_of`."""
        if scores_one(self.fields) and choice.tokens[-1:] and choice.finish == "length":
            ends = self.service.engine.end_token_ids
            if choice.tokens[-1] in ends and not self.fields.ignore_eos:
                choice.finish = "stop"

    def _echo_scores(self, request: int, scores: Sequence[Logprob | None]) -> None:
        for (number, _), choice in self.choices.items():
            if number == request:
                choice.scores = [*scores, *choice.scores]

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The response, or a chunk of it."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.fields.model,
            "choices": choices,
            "usage": None,
        }

    def counts(self) -> dict[str, Any]:
        """Tokens given and said, and how fast."""
        prompt = sum(len(request.prompt) for request in self.requests)
        said = sum(choice.generated for choice in self.choices.values())
        return {"usage": usage(prompt, said), "timings": self.clock.timings(prompt, said)}

    async def whole(self) -> dict[str, Any]:
        """The response as one object."""
        async for _ in self.grow():
            pass
        chunk = [choice.tell(self.scored) for choice in self.choices.values()]
        return self.body(chunk) | self.counts()

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The response as it comes."""
        async for choice in self.grow():
            if choice.text or choice.finish or choice.scores:
                yield self.body([choice.tell(self.scored)])
        if self.fields.stream_options is not None and self.fields.stream_options.include_usage:
            yield self.body([]) | self.counts()


@router.post("/v1/completions")
async def completions(request: Request, fields: CompletionFields) -> Response:
    """Continue one or several prompts."""
    job = await begin(request.app.state.service, fields)
    if fields.stream:
        return as_events(job.chunks())
    return as_json(await unless_gone(request, job.whole()))


async def begin(service: Service, fields: CompletionFields) -> CompletionJob:
    """Check everything, then ask the engine."""
    clock = Clock(service.metrics)
    if service.guard is not None:
        raise ApiError(403, "this model has a guard; use /v1/chat/completions instead")
    adapter = service.adapter(fields.model)
    prompts = prompts_of(fields.prompt, service.options.limits.prompts)
    constraint = await service.compile(constraint_of(fields.response_format))
    params = params_of(service, fields, constraint)
    ids = [await service.encode_prompt(prompt) for prompt in prompts]
    requests, stream = service.submit(ids, params, adapter, fields.salt)
    choices: dict[tuple[int, int], Choice] = {}
    for prompt, asked in zip(prompts, requests, strict=True):
        for answer in range(params.n):
            choice = Choice(len(choices), list(asked.prompt), CompletionLogprobs(service.tokenizer))
            if fields.echo:
                choice.text = given_text(service.tokenizer, prompt)
                choice.tokens = list(asked.prompt)
            choices[asked.id, answer] = choice
    return CompletionJob(service, fields, requests, stream, clock, choices)


def params_of(service: Service, fields: CompletionFields, constraint: Any) -> SamplingParams:
    """The engine's parameters. UserError, naming the field.

    A single scored token is kept even where it ends the text: who asks for it wants its score.
    """
    limits = service.options.limits
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise bad_value("best_of", fields.best_of, "the same number as n")
    check_stream_options(fields)
    wanted = None
    if fields.logprobs is not None:
        wanted = at_most("logprobs", fields.logprobs, limits.logprobs)
    start = fields.logprob_start_len or 0
    if start and not (fields.echo and wanted is not None):
        raise bad_value("logprob_start_len", start, "0 without echo and logprobs")
    most = DEFAULT_TOKENS if fields.max_tokens is None else fields.max_tokens
    if most == 0 and not fields.echo:
        raise bad_value("max_tokens", 0, "at least 1, or 0 with echo")
    return sampling(
        fields,
        limits,
        max_tokens=most,
        logprobs=wanted,
        prompt_logprobs=wanted if fields.echo else None,
        logprob_start_len=start,
        constraint=constraint,
        ignore_eos=scores_one(fields),
    )


def scores_one(fields: CompletionFields) -> bool:
    """Whether the request is for the scores of a prompt and one token, as lm-eval's are."""
    return fields.max_tokens == 1 and fields.logprobs is not None


def prompts_of(
    given: str | Sequence[Any], most: int, name: str = "prompt"
) -> list[str | list[int]]:
    """One prompt or several, as a list of them. UserError for none, or too many."""
    if isinstance(given, str):
        return [given]
    ids = [one for one in given if isinstance(one, int)]
    if ids:
        return [ids]
    if not given or not all(isinstance(one, str) or one for one in given):
        raise UserError(f"{name}: is empty; it needs at least one token")
    if len(given) > most:
        raise UserError(f"{name}: has {len(given)} entries; at most {most} may be")
    return list(given)


def given_text(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> str:
    """The prompt as `echo` repeats it."""
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
