"""Ollama's API: its fields, the chat that a request asks for, and the lines of an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from llamaseek.serve.wire.blocks import AnswerPart, Counts
from llamaseek.serve.wire.fields import (
    LARGEST,
    ChatFields,
    MaxTokens,
    Messages,
    Strict,
    Texts,
    Tool,
)

LATEST = ":latest"
"""Ollama's clients put this tag after names that have none."""
OPTIONS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""A chat's names of the options."""
NAMES = {name: f"options.{option}" for option, name in OPTIONS.items()} | {
    "response_format": "format"
}


class OllamaOptions(Strict):
    """How an answer is sampled. `num_ctx` is how long a context has to fit."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stop: Texts | None = None
    num_predict: MaxTokens | None = None
    num_ctx: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None


class OllamaFields(Strict):
    """What both kinds of request have. The model stays loaded whatever `keep_alive` is."""

    model: str
    stream: bool = True
    format: Literal["json"] | dict[str, Any] | None = None
    options: OllamaOptions | None = None
    keep_alive: str | float | int | None = None


class OllamaChatFields(OllamaFields):
    """The body of `/api/chat`."""

    messages: Annotated[Messages, Field(min_length=1)]
    tools: list[Tool] | None = None


class OllamaGenerateFields(OllamaFields):
    """The body of `/api/generate`: one turn of a chat."""

    prompt: str
    system: str | None = None


class OllamaShowFields(Strict):
    """The body of `/api/show`."""

    model: str
    verbose: bool | None = None


def read_ollama(
    fields: OllamaChatFields | OllamaGenerateFields,
) -> tuple[ChatFields, dict[str, str]]:
    """The chat that a request asks for, and what it calls the chat's fields."""
    names = dict(NAMES)
    if isinstance(fields, OllamaChatFields):
        messages, tools = [_message(each) for each in fields.messages], fields.tools
    else:
        said = {"system": fields.system, "prompt": fields.prompt}
        roles = {"system": "system", "prompt": "user"}
        given = [name for name in said if name == "prompt" or said[name]]
        messages = [{"role": roles[name], "content": said[name]} for name in given]
        names |= {"messages": "prompt"} | {f"messages[{n}]": name for n, name in enumerate(given)}
        tools = None
    asked = {} if fields.options is None else fields.options.model_dump(exclude_unset=True)
    chat = {OPTIONS[name]: value for name, value in asked.items() if name in OPTIONS}
    chat |= {"model": base_name(fields.model), "messages": messages, "tools": tools}
    if fields.format is not None:
        schema = {"type": "object"} if fields.format == "json" else fields.format
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "format", "schema": schema},
        }
    if tools is not None:
        chat["tools"] = [tool.model_dump(exclude_unset=True) for tool in tools]
    return ChatFields.model_validate(chat), names


def base_name(model: str) -> str:
    """A model's name without the tag that Ollama's clients add."""
    return model.removesuffix(LATEST)


def _message(given: dict[str, Any]) -> dict[str, Any]:
    """A message with a result's tool by the name that a chat has for it."""
    return {"name" if key == "tool_name" else key: value for key, value in given.items()}


@dataclass
class OllamaWriter:
    """The lines of one answer; `chat` says whether they hold messages or texts."""

    model: str
    chat: bool
    start: float = field(default_factory=time.perf_counter)
    finish: str = "stop"

    def line(self, part: AnswerPart) -> dict[str, Any]:
        """What the answer gained."""
        self.finish = part.finish or self.finish
        text = part.content + (part.refusal or "")
        calls = [_call(call) for call in part.calls]
        rest = {"thinking": part.reasoning} if part.reasoning else {}
        if not self.chat:
            return self._line(False) | {"response": text} | rest
        called = {"tool_calls": calls} if calls else {}
        return self._line(False) | {
            "message": {"role": "assistant", "content": text} | rest | called
        }

    def end(self, counts: Counts) -> dict[str, Any]:
        """The last line; times are in nanoseconds."""
        empty: Mapping[str, Any] = {"message": {"role": "assistant", "content": ""}}
        return {
            **self._line(True),
            **(empty if self.chat else {"response": ""}),
            "done_reason": "length" if self.finish == "length" else "stop",
            "total_duration": int((time.perf_counter() - self.start) * 1e9),
            "prompt_eval_count": counts.given,
            "eval_count": counts.generated,
        }

    def _line(self, done: bool) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self.model, "created_at": now, "done": done}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    given = json.loads(function["arguments"])
    return {"function": {"name": function["name"], "arguments": given}}
