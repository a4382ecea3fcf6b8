"""Anthropic's Messages API, written: the message, and the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llamaseek.serve.wire.blocks import (
    CALL,
    CLOSED,
    GREW,
    OPENED,
    REASONING,
    REFUSAL,
    TEXT,
    AnswerBlocks,
    AnswerPart,
    Block,
    Counts,
)

DELTAS = {
    TEXT: ("text_delta", "text"),
    REFUSAL: ("text_delta", "text"),
    REASONING: ("thinking_delta", "thinking"),
    CALL: ("input_json_delta", "partial_json"),
}
STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


@dataclass
class MessageWriter:
    """One message while it is made; `most` is how many tokens it may have."""

    id: str
    model: str
    most: int
    blocks: AnswerBlocks = field(default_factory=AnswerBlocks)
    finish: str | None = None

    def start(self, counts: Counts) -> dict[str, Any]:
        """The first event: the message before anything is said."""
        return {"type": "message_start", "message": self._message([], counts)}

    def add(self, part: AnswerPart) -> Iterator[dict[str, Any]]:
        """The events of what the answer gained."""
        self.finish = part.finish
        for change, block, text in self.blocks.add(part):
            place = {"index": block.index}
            if change == OPENED:
                empty = _content(block)
                yield {"type": "content_block_start", **place, "content_block": empty}
            elif change == GREW:
                kind, key = DELTAS[block.kind]
                yield {"type": "content_block_delta", **place, "delta": {"type": kind, key: text}}
            elif change == CLOSED:
                yield {"type": "content_block_stop", **place}

    def end(self, counts: Counts, stop: str | None) -> Iterator[dict[str, Any]]:
        """The last events; `stop` is the stop sequence that came."""
        end = self._end(counts, stop)
        yield {"type": "message_delta", "delta": end, "usage": _usage(counts)}
        yield {"type": "message_stop"}

    def body(self, counts: Counts, stop: str | None) -> dict[str, Any]:
        """The whole message."""
        content = [_content(block) for block in self.blocks.found]
        return self._message(content, counts) | self._end(counts, stop)

    def _message(self, content: list[Any], counts: Counts) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(counts),
        }

    def _end(self, counts: Counts, stop: str | None) -> dict[str, Any]:
        reason = STOPS[self.finish or "stop"]
        if reason == "end_turn" and stop is not None:
            reason = "stop_sequence"
        if reason == "max_tokens" and counts.generated < self.most:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": stop}


def _content(block: Block) -> dict[str, Any]:
    """A block as it stands in the message."""
    if block.kind == CALL:
        given = json.loads(block.text or "{}")
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": given}
    if block.kind == REASONING:
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _usage(counts: Counts) -> dict[str, Any]:
    """The counts by this API's names, in which cached tokens are counted apart."""
    return {
        "input_tokens": counts.given - counts.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.generated,
    }
