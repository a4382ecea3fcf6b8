"""OpenAI's Responses API, written: the response object, and the events of a stream."""

from __future__ import annotations

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
from llamaseek.serve.wire.errors import ApiError
from llamaseek.serve.wire.responses import ResponsesFields

PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    TEXT: ("output_text", "text", {"annotations": [], "logprobs": []}),
    REASONING: ("reasoning_text", "text", {}),
    REFUSAL: ("refusal", "refusal", {}),
}
"""For each kind of block the type of its part, the key of its text, and what else is in it."""
ITEM_NAMES = {TEXT: "msg", REFUSAL: "msg", REASONING: "rs", CALL: "fc"}
REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
ECHOED = (
    "instructions", "max_output_tokens", "temperature", "top_p", "tools", "user", "metadata",
    "safety_identifier", "prompt_cache_key",
)  # fmt: skip


@dataclass
class ResponseWriter:
    """One response while it is made; `id` and `created` are those of its answer."""

    fields: ResponsesFields
    id: str
    created: int
    blocks: AnswerBlocks = field(default_factory=AnswerBlocks)
    finish: str | None = None
    _sent: int = 0

    def start(self) -> Iterator[dict[str, Any]]:
        """The first events."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self.body(None))

    def add(self, part: AnswerPart) -> Iterator[dict[str, Any]]:
        """The events of what the answer gained."""
        self.finish = part.finish
        for change, block, text in self.blocks.add(part):
            if change == OPENED:
                yield from self._opened(block)
            elif change == GREW:
                yield self._growth(block, text)
            elif change == CLOSED:
                yield from self._closed(block)

    def end(self, counts: Counts) -> dict[str, Any]:
        """The last event."""
        response = self.body(counts)
        return self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The event of an error in the middle."""
        inner = error.body()["error"]
        known = {key: inner[key] for key in ("code", "message", "param")}
        return self._event("error", **known)

    def body(self, counts: Counts | None) -> dict[str, Any]:
        """The response; it is in progress while nothing has been counted."""
        reason = REASONS.get(self.finish or "")
        status = "incomplete" if reason else "completed"
        given = self.fields.model_dump(by_alias=True, exclude_unset=True)
        wanted = {"format": {"type": "text"}} | (given.get("text") or {})
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if counts is None else status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "model": self.fields.model,
            "output": [] if counts is None else [self._item(each) for each in self.blocks.found],
            "parallel_tool_calls": self.fields.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "text": wanted,
            "tool_choice": given.get("tool_choice") or "auto",
            "truncation": "disabled",
            **{name: given.get(name) for name in ECHOED},
            "tools": given.get("tools") or [],
            "metadata": given.get("metadata") or {},
            "usage": None if counts is None else _usage(counts),
        }

    def _event(self, kind: str, **rest: Any) -> dict[str, Any]:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **rest}

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._name(block), "output_index": block.index}
        return place if block.kind == CALL else {**place, "content_index": 0}

    def _name(self, block: Block) -> str:
        return f"{ITEM_NAMES[block.kind]}_{self.id.partition('_')[2]}_{block.index}"

    def _opened(self, block: Block) -> Iterator[dict[str, Any]]:
        item = self._item(block, "in_progress", begun=True)
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind != CALL:
            part = _part(block)
            yield self._event("response.content_part.added", **self._place(block), part=part)

    def _growth(self, block: Block, text: str) -> dict[str, Any]:
        name = "function_call_arguments" if block.kind == CALL else PARTS[block.kind][0]
        rest: dict[str, Any] = {"logprobs": []} if block.kind == TEXT else {}
        return self._event(f"response.{name}.delta", **self._place(block), delta=text, **rest)

    def _closed(self, block: Block) -> Iterator[dict[str, Any]]:
        place = self._place(block)
        if block.kind == CALL:
            whole = {"name": block.name, "arguments": block.text}
            yield self._event("response.function_call_arguments.done", **place, **whole)
        else:
            kind, key, _ = PARTS[block.kind]
            rest: dict[str, Any] = {"logprobs": []} if block.kind == TEXT else {}
            yield self._event(f"response.{kind}.done", **place, **{key: block.text}, **rest)
            yield self._event("response.content_part.done", **place, part=_part(block))
        item = self._item(block)
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _item(self, block: Block, status: str = "", begun: bool = False) -> dict[str, Any]:
        """A block as an item; the last one of an answer that was cut off is incomplete."""
        cut = self.finish == "length" and block is self.blocks.found[-1]
        item: dict[str, Any] = {"id": self._name(block)}
        item["status"] = status or ("incomplete" if cut else "completed")
        if block.kind == CALL:
            call = {"call_id": block.id, "name": block.name, "arguments": block.text}
            return {"type": "function_call", **item, **call}
        content = [] if begun else [_part(block)]
        if block.kind == REASONING:
            return {"type": "reasoning", **item, "summary": [], "content": content}
        return {"type": "message", **item, "role": "assistant", "content": content}


def _part(block: Block) -> dict[str, Any]:
    kind, key, rest = PARTS[block.kind]
    return {"type": kind, key: block.text, **rest}


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.given,
        "input_tokens_details": {"cached_tokens": counts.cached},
        "output_tokens": counts.generated,
        "output_tokens_details": {"reasoning_tokens": counts.reasoned},
        "total_tokens": counts.given + counts.generated,
    }
