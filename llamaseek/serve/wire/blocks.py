"""An answer as blocks in a row: reasoning, text, calls of tools, a refusal.

OpenAI's Responses API calls them items, Anthropic's Messages API content blocks. In both each is
opened, grows and is closed before the next one opens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

REASONING, TEXT, CALL, REFUSAL = "reasoning", "text", "call", "refusal"
OPENED, GREW, CLOSED = "opened", "grew", "closed"


@dataclass(frozen=True)
class AnswerPart:
    """What an answer has gained: reasoning comes first, calls after the text.

    `calls` are as in a chat's message. `finish` is the reason of its end, as in a chat's choice.
    """

    reasoning: str = ""
    content: str = ""
    calls: Sequence[dict[str, Any]] = ()
    refusal: str | None = None
    finish: str | None = None


@dataclass(frozen=True)
class Counts:
    """Tokens given and said; of these `cached` from the prefix cache, `reasoned` as reasoning."""

    given: int
    generated: int
    cached: int = 0
    reasoned: int = 0


@dataclass
class Block:
    """One of them; the `text` of a call is its arguments."""

    index: int
    kind: str
    text: str = ""
    id: str = ""
    name: str = ""


Change = tuple[str, Block, str]
"""OPENED, GREW or CLOSED, the block, and the text by which it grew."""


@dataclass
class AnswerBlocks:
    """The blocks of one answer so far."""

    found: list[Block] = field(default_factory=list)
    _open: Block | None = None

    def add(self, part: AnswerPart) -> Iterator[Change]:
        """What a part changes. An answer of nothing is an empty text."""
        for kind, text in ((REASONING, part.reasoning), (TEXT, part.content)):
            if text:
                yield from self._grow(kind, text)
        for call in part.calls:
            function = call["function"]
            yield from self._begin(CALL, call["id"], function["name"])
            yield from self._grow(CALL, function["arguments"])
            yield from self._close()
        if part.refusal is not None:
            yield from self._grow(REFUSAL, part.refusal)
        if part.finish is not None:
            if not self.found:
                yield from self._begin(TEXT)
            yield from self._close()

    def _grow(self, kind: str, text: str) -> Iterator[Change]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        block = self.found[-1]
        block.text += text
        yield GREW, block, text

    def _begin(self, kind: str, id: str = "", name: str = "") -> Iterator[Change]:
        yield from self._close()
        self._open = Block(len(self.found), kind, id=id, name=name)
        self.found.append(self._open)
        yield OPENED, self._open, ""

    def _close(self) -> Iterator[Change]:
        if self._open is not None:
            block, self._open = self._open, None
            yield CLOSED, block, ""
