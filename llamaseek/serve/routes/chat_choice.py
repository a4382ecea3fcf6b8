"""One answer of a chat while it is generated: text, tool calls, log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaseek.engine.request import Delta, Logprob
from llamaseek.engine.text_out import StopStrings
from llamaseek.safety.served import GuardedAnswer
from llamaseek.serve.service import new_id
from llamaseek.serve.wire.blocks import AnswerPart
from llamaseek.serve.wire.logprobs import chat_logprobs
from llamaseek.text.messages import Content, Event, Reasoning, ToolCall
from llamaseek.text.parse import IdStream
from llamaseek.text.reasoning import writes_reasoning
from llamaseek.text.tokenizer import Tokenizer


class AnswerReader:
    """Events from an answer's deltas: its text, with `calls` the calls in it, and the reasoning of
    models that reason. `prompt` is what is answered.
    """

    def __init__(
        self, tokenizer: Tokenizer, calls: bool, stops: Sequence[str], prompt: Sequence[int]
    ) -> None:
        parts = calls or writes_reasoning(tokenizer)
        self._ids = IdStream(tokenizer, calls, prompt) if parts else None
        self._stops, self._reasoning_stops = StopStrings(stops), StopStrings(stops)

    def read(self, delta: Delta) -> list[Event]:
        """The events of this delta."""
        if self._ids is None:
            return [Content(delta.text)] if delta.text else []
        events = [event for token in delta.tokens for event in self._ids.push(token)]
        if delta.finish is not None:
            events += self._ids.finish()
        passed = [each for event in events for each in self._stopped(event)]
        if delta.finish is not None:
            passed += self._end_of_reasoning()
            rest = self._stops.flush()
            passed += [Content(rest)] if rest else []
        return passed

    def _stopped(self, event: Event) -> list[Event]:
        """The event up to a stop text, which may stand in the reasoning, too."""
        if isinstance(event, Reasoning):
            text = self._reasoning_stops.push(event.text)
            return [Reasoning(text)] if text else []
        before = self._end_of_reasoning()
        if self._reasoning_stops.stopped or self._stops.stopped:
            return before
        if not isinstance(event, Content):
            return [*before, event]
        text = self._stops.push(event.text)
        return [*before, *([Content(text)] if text else [])]

    def _end_of_reasoning(self) -> list[Event]:
        rest = self._reasoning_stops.flush()
        return [Reasoning(rest)] if rest else []


@dataclass
class ChatChoice:
    """The message so far, and the part of it that was not sent yet."""

    index: int
    tokenizer: Tokenizer
    reader: AnswerReader
    scored: bool
    watch: GuardedAnswer | None = None
    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Logprob] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | None = None
    generated: int = 0
    reasoned: int = 0  # of the tokens generated, those of the reasoning
    _called: bool = False
    _opened: bool = False
    _told: int = 0  # calls

    async def see(self, delta: Delta) -> None:
        """More of it, as far as a guard lets it pass."""
        self.generated += len(delta.tokens)
        if self.finish is not None:
            return
        for passed in [delta] if self.watch is None else await self.watch.clear(delta):
            self.add(passed)
        if self.watch is not None and not self.watch.found.safe:
            self.finish = "content_filter"

    def add(self, delta: Delta) -> None:
        """Add a delta of the engine."""
        self.scores += delta.logprobs or []
        self.stop_reason = delta.stop_reason or self.stop_reason
        events = self.reader.read(delta)
        if any(isinstance(event, Reasoning) for event in events):
            self.reasoned += len(delta.tokens)
        for event in events:
            if isinstance(event, Content):
                self.content += event.text
            elif isinstance(event, Reasoning):
                self.reasoning += event.text
            else:
                self.calls.append(self._call(event))
        if delta.finish is not None:
            ended = self._called and delta.finish == "stop"
            self.finish = "tool_calls" if ended else delta.finish

    def _call(self, call: ToolCall) -> dict[str, Any]:
        self._called = True
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        function = {"name": call.name, "arguments": arguments}
        return {"id": new_id("call"), "type": "function", "function": function}

    @property
    def news(self) -> bool:
        """Whether there is something to send."""
        return bool(self.content or self.reasoning or self.calls or self.finish is not None)

    def message(self) -> dict[str, Any]:
        """The whole choice."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        message["refusal"] = self._refusal()
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = self.content or None
        return {"index": self.index, "message": message, **self._end()}

    def chunk(self) -> dict[str, Any]:
        """What is new, as a streamed choice."""
        delta: dict[str, Any] = {} if self._opened else {"role": "assistant", "content": ""}
        end, first, part = self._end(), self._told, self.take()
        if part.reasoning:
            delta["reasoning_content"] = part.reasoning
        if part.content:
            delta["content"] = part.content
        if part.calls:
            delta["tool_calls"] = [
                {"index": first + n, **call} for n, call in enumerate(part.calls)
            ]
        if part.refusal is not None:
            delta["refusal"] = part.refusal
        self._opened = True
        return {"index": self.index, "delta": delta, **end}

    def take(self) -> AnswerPart:
        """What is new, whatever the protocol."""
        part = AnswerPart(self.reasoning, self.content, self.calls, self._refusal(), self.finish)
        self._told += len(self.calls)
        self.content, self.reasoning, self.calls, self.scores = "", "", [], []
        return part

    def _end(self) -> dict[str, Any]:
        scores = chat_logprobs(self.tokenizer, self.scores) if self.scored else None
        end: dict[str, Any] = {"logprobs": scores, "finish_reason": self.finish}
        if self.watch is not None:
            end["guard"] = self.watch.found.as_json()
        return end

    def _refusal(self) -> str | None:
        return None if self.watch is None else self.watch.found.refusal
