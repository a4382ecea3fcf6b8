"""From a request's fields to the engine's sampling parameters."""

from __future__ import annotations

import json

from llamaseek.engine.constrain import Constraint
from llamaseek.engine.request import SamplingParams
from llamaseek.errors import UserError, bad_value
from llamaseek.serve.options import Limits
from llamaseek.serve.wire.fields import (
    JsonObject,
    JsonSchema,
    ResponseFormat,
    SamplingFields,
    TextFormat,
)

UNLIMITED = -1
ANY_OBJECT = '{"type": "object"}'


def sampling(
    fields: SamplingFields,
    limits: Limits,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    logprob_start_len: int = 0,
    constraint: Constraint | None = None,
    ignore_eos: bool = False,
) -> SamplingParams:
    """The engine's parameters; UserError, naming the field, for what is not allowed."""
    count = at_most("n", fields.n or 1, limits.choices)
    return SamplingParams(
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_k=max(fields.top_k or 0, 0),
        top_p=1.0 if fields.top_p is None else fields.top_p,
        min_p=fields.min_p or 0.0,
        repetition_penalty=1.0 if fields.repetition_penalty is None else fields.repetition_penalty,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias=bias(fields.logit_bias or {}),
        seed=fields.seed,
        max_tokens=None if max_tokens == UNLIMITED else max_tokens,
        ignore_eos=fields.ignore_eos or ignore_eos,
        stop=stops(fields.stop, limits),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logprob_start_len=logprob_start_len,
        n=count,
        constraint=constraint,
    )


def check_stream_options(fields: SamplingFields) -> None:
    """UserError for a count of tokens that is asked of a stream where there is none."""
    asked = fields.stream_options is not None and fields.stream_options.include_usage
    if asked and not fields.stream:
        raise UserError("stream_options: is only for streams; set stream to true")


def at_most(name: str, value: int, most: int) -> int:
    """The value; UserError if it is above `most`."""
    if value > most:
        raise bad_value(name, value, f"a whole number up to {most}")
    return value


def bias(given: dict[str, float]) -> dict[int, float]:
    """OpenAI's keys are token ids as text."""
    for key in given:
        if not key.isascii() or not key.isdecimal() or len(key) > 10:
            raise bad_value("logit_bias", key, "token ids")
    return {int(key): value for key, value in given.items()}


def stops(given: str | list[str] | None, limits: Limits) -> list[str]:
    """Stop texts as a list; empty ones stop nothing."""
    found = [each for each in ([given] if isinstance(given, str) else given or []) if each]
    if len(found) > limits.stops:
        raise UserError(f"stop: {len(found)} texts are too many; at most {limits.stops} may be")
    longest = max(map(len, found), default=0)
    if longest > limits.stop_length:
        raise UserError(
            f"stop: a text of {longest} characters is too long; allowed: {limits.stop_length}"
        )
    return found


def constraint_of(wanted: ResponseFormat | None) -> Constraint | None:
    """What `response_format` asks for."""
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    if isinstance(wanted, JsonObject):
        return Constraint("json_schema", ANY_OBJECT)
    if isinstance(wanted, JsonSchema):
        return Constraint("json_schema", json.dumps(wanted.json_schema.schema_))
    if wanted.type == "regex":
        return Constraint("regex", wanted.regex)
    return Constraint("lark", wanted.lark)
