"""`/v1/chat/completions`: answers to conversations, whole or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from llamaseek.engine.background import Stream
from llamaseek.engine.constrain import Constraint
from llamaseek.engine.request import SamplingParams
from llamaseek.errors import UserError, bad_value, shorten
from llamaseek.safety.served import GuardedAnswer, GuardFindings
from llamaseek.safety.views import input_views
from llamaseek.serve.metrics import Clock
from llamaseek.serve.routes.chat_choice import AnswerReader, ChatChoice
from llamaseek.serve.service import SHORT, Service, new_id
from llamaseek.serve.wire.blocks import AnswerPart
from llamaseek.serve.wire.bodies import StrictRoute
from llamaseek.serve.wire.counting import is_larger, sizes
from llamaseek.serve.wire.fields import ChatFields, is_idle
from llamaseek.serve.wire.params import at_most, check_stream_options, constraint_of, sampling
from llamaseek.serve.wire.pieces import as_json
from llamaseek.serve.wire.streaming import as_events, deltas_of, unless_gone, usage
from llamaseek.serve.wire.tools import call_constraint, one_call_a_turn, shown_tools
from llamaseek.text.chat import ChatOptions, encode_chat
from llamaseek.text.messages import REASONING_KEYS, Message
from llamaseek.text.tokenizer import StreamDecoder

MESSAGE_KEYS = frozenset(
    {"role", "name", "content", "tool_calls", "tool_call_id", "refusal", *REASONING_KEYS}
)
SHOWN = {"tools", "response_format", "chat_template_kwargs"}
"""Fields beside the messages whose texts may reach the model."""
router = APIRouter(route_class=StrictRoute)


@dataclass
class Chat:
    """A running request to this endpoint."""

    service: Service
    fields: ChatFields
    prompt: int  # tokens
    stream: Stream
    clock: Clock
    choices: list[ChatChoice]
    cached: int = 0  # of the prompt's tokens
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    async def grow(self) -> AsyncIterator[ChatChoice]:
        """The choices as they grow; TimeoutError."""
        held_by = "tools" if self.fields.response_format is None else "response_format"
        async with asyncio.timeout(self.service.options.timeout):
            async for delta in deltas_of(self.stream, self.clock, held_by):
                choice = self.choices[delta.index]
                self.cached += delta.cached
                await choice.see(delta)
                yield choice
                if all(each.finish is not None for each in self.choices):
                    return

    async def parts(self) -> AsyncIterator[AnswerPart]:
        """What the only choice says, piece by piece, for other protocols."""
        async for choice in self.grow():
            if choice.news:
                yield choice.take()

    async def whole(self) -> dict[str, Any]:
        """The response as one object."""
        async for _ in self.grow():
            pass
        body = self.body("chat.completion", [choice.message() for choice in self.choices])
        return body | self.counts()

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The response as it comes."""
        wants = self.fields.stream_options is not None and self.fields.stream_options.include_usage
        rest = {"usage": None} if wants else {}
        kind = "chat.completion.chunk"
        async for choice in self.grow():
            if choice.news:
                yield self.body(kind, [choice.chunk()]) | rest
        if wants:
            yield self.body(kind, []) | self.counts()

    def body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The response, or a chunk of it."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.fields.model,
            "choices": choices,
        }

    def counts(self) -> dict[str, Any]:
        """Tokens given and said, and how fast."""
        said = sum(choice.generated for choice in self.choices)
        timings = self.clock.timings(self.prompt, said)
        return {"usage": usage(self.prompt, said), "timings": timings}


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, fields: ChatFields) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    answer = await begin(service, fields)
    if isinstance(answer, GuardFindings):
        return refused(fields, answer)
    if fields.stream:
        return as_events(answer.chunks())
    return as_json(await unless_gone(request, answer.whole()))


async def begin(service: Service, fields: ChatFields) -> Chat | GuardFindings:
    """Check everything, ask the guard, then the engine."""
    clock = Clock(service.metrics)
    adapter, tokenizer = service.adapter(fields.model), service.tokenizer
    tools = shown_tools(fields, tokenizer, service.options.limits)
    constraint = await constraint_for(service, fields)
    params = params_of(service, fields, constraint)
    prompt = await prompt_of(service, fields, tools)
    found = None if service.guard is None else await service.guard.check(judged(service, fields))
    if found is not None and not found.safe:
        return found
    _, stream = service.submit([prompt], params, adapter, fields.salt, "messages")
    choices = [
        ChatChoice(
            index,
            tokenizer,
            AnswerReader(tokenizer, bool(tools), params.stop, prompt),
            scored=bool(fields.logprobs),
            watch=watch_over(service, fields, found),
        )
        for index in range(params.n)
    ]
    return Chat(service, fields, len(prompt), stream, clock, choices)


async def prompt_of(service: Service, fields: ChatFields, tools: list[dict[str, Any]]) -> list[int]:
    """The ids that the model is asked with. UserError, naming the field."""
    check_keys(fields.messages)
    opened, options = ending(fields)
    return await encode(service, fields.messages, tools, opened, options)


def judged(service: Service, fields: ChatFields) -> list[list[Message]]:
    """What the guard judges before the model is asked: all that reaches the model.

    Fields are read as they were sent, also where this model is not shown them.
    """
    sent = fields.model_dump(include=SHOWN, exclude_unset=True, by_alias=True)
    return input_views(fields.messages, sent, service.options.guard_system)


def watch_over(
    service: Service, fields: ChatFields, found: GuardFindings | None
) -> GuardedAnswer | None:
    """What follows one answer, where there is a guard."""
    if service.guard is None or found is None:
        return None
    return GuardedAnswer(service.guard, fields.messages, StreamDecoder(service.tokenizer), found)


def check_keys(messages: list[dict[str, Any]]) -> None:
    """UserError for a part of a message that means nothing here, unless it is empty.

    Templates may show a speaker's `name`; the formats of Llama 3 and DeepSeek-V3 do not.
    """
    for index, message in enumerate(messages):
        for key, value in message.items():
            if key not in MESSAGE_KEYS and value != {} and not is_idle(key, value):
                raise UserError(f"messages[{index}].{shorten(key, 60)}: is not supported")
        if not isinstance(message.get("name"), str | None):
            raise bad_value(f"messages[{index}].name", message["name"], "a string")


def ending(fields: ChatFields) -> tuple[bool, ChatOptions]:
    """Whether an answer is opened at the conversation's end, and how its template is rendered.

    A last message of the assistant is continued unless the request asks for another answer.
    """
    continued = fields.continue_final_message
    if continued is None and not fields.add_generation_prompt:
        last = fields.messages[-1]
        continued = last.get("role") == "assistant" and not last.get("tool_calls")
    opened = fields.add_generation_prompt
    options = ChatOptions(
        chat_template_kwargs=fields.chat_template_kwargs or {},
        continue_final_message=bool(continued),
    )
    return (not continued if opened is None else opened), options


async def encode(
    service: Service,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    open_answer: bool,
    options: ChatOptions,
) -> list[int]:
    """A conversation's ids, with `open_answer` an answer opened at its end.

    UserError for more messages than allowed, and for more characters than the context can hold.
    """
    at_most("messages", len(messages), service.options.limits.messages)

    def ids() -> list[int]:
        parts = [(each.get("content"), each.get("tool_calls")) for each in messages]
        size = sum(sizes([part for each in parts for part in each if part]))
        if size > service.longest_token * service.engine.context:
            raise UserError(f"messages: have {size} characters, more than the context can hold")
        render = partial(
            encode_chat,
            service.tokenizer,
            add_generation_prompt=open_answer,
            tools=tools or None,
            options=options,
        )
        try:
            return render(messages).ids
        except UserError:
            apart = one_call_a_turn(messages)
            if apart == messages:
                raise
            return render(apart).ids

    if is_larger([messages, tools], SHORT):
        return await asyncio.to_thread(ids)
    return ids()


async def constraint_for(service: Service, fields: ChatFields) -> Constraint | None:
    """What the answer has to be: a call, or what `response_format` says."""
    call = call_constraint(fields, service.tokenizer)
    wanted = constraint_of(fields.response_format)
    if call is not None and wanted is not None:
        raise UserError("response_format: cannot be combined with tool calls that follow a schema")
    return await service.compile(call, "tools") or await service.compile(wanted)


def params_of(
    service: Service, fields: ChatFields, constraint: Constraint | None
) -> SamplingParams:
    """The engine's parameters. UserError, naming the field."""
    limits = service.options.limits
    check_stream_options(fields)
    if fields.top_logprobs and not fields.logprobs:
        raise UserError("top_logprobs: needs logprobs to be true")
    most, newer = fields.max_tokens, fields.max_completion_tokens
    if most is not None and newer is not None and most != newer:
        raise UserError("max_tokens: differs from max_completion_tokens; give one of them")
    most = newer if most is None else most
    if most == 0:
        raise bad_value("max_tokens", 0, "at least 1")
    top = at_most("top_logprobs", fields.top_logprobs or 0, limits.logprobs)
    return sampling(
        fields,
        limits,
        max_tokens=most,
        logprobs=top if fields.logprobs else None,
        constraint=constraint,
    )


def refused(fields: ChatFields, found: GuardFindings) -> Response:
    """The answer to a message that the guard does not let through."""
    message = {"role": "assistant", "content": "", "refusal": found.refusal}
    end = {"logprobs": None, "finish_reason": "content_filter", "guard": found.as_json()}
    base = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": fields.model}
    if not fields.stream:
        choice = {"index": 0, "message": message, **end}
        body = {"object": "chat.completion", "choices": [choice], "usage": usage(0, 0)}
        return JSONResponse(base | body)

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        choice = {"index": 0, "delta": message, **end}
        yield base | {"object": "chat.completion.chunk", "choices": [choice]}

    return as_events(chunks())
