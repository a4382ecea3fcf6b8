"""DeepSeek-V3's output, read back: content, then calls between their own control tokens."""

from __future__ import annotations

from llamaseek.text.events import Control, Event, ToolCall, said
from llamaseek.text.llama3_parse import is_name, read_object
from llamaseek.text.special import (
    CALL_BEGIN,
    CALL_END,
    CALL_SEP,
    CALLS_BEGIN,
    CALLS_END,
    SENTENCE_END,
)


class DeepSeekReader:
    """Reads one message. Content flows; each call comes out when it is whole."""

    ends = frozenset({SENTENCE_END})
    marks = ends | {CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, CALL_SEP}

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._unread = ""  # since the calls began, what has not become an event
        self._call: str | None = None  # since this call began
        self._among_calls = self._called = False

    def read(self, item: str | Control) -> list[Event]:
        """What this text or control token tells."""
        name = item.name if isinstance(item, Control) else None
        text = name if name is not None else str(item)
        if self._call is not None:
            self._call += text
            return self._end_call() if name == CALL_END else []
        if not self._among_calls:
            self._among_calls = name == CALLS_BEGIN
            self._unread = text if self._among_calls else ""
            return [] if self._among_calls else said(text)
        if name == CALL_BEGIN:
            self._call = text
            return []
        self._unread += text
        return self.finish() if name == CALLS_END else []

    def finish(self) -> list[Event]:
        """What was held, now that the calls or the message have ended."""
        rest = self._unread + (self._call or "")
        if self._called:
            rest = _without_frame(rest)
        self._begin()
        return said(rest)

    def _end_call(self) -> list[Event]:
        raw, self._call = self._call or "", None
        call = read_call(raw)
        if call is None:
            self._unread += raw
            return []
        before, self._unread, self._called = _without_frame(self._unread), "", True
        return [*said(before), call]


def read_call(text: str) -> ToolCall | None:
    """One call with the control tokens at its ends, or None if it is not as it should be."""
    inner = text.removeprefix(CALL_BEGIN).removesuffix(CALL_END)
    kind, _, rest = inner.partition(CALL_SEP)
    if kind.strip() != "function":
        return _bare_call(kind.strip(), rest)
    name, fence, body = (part.strip() for part in rest.partition("```json"))
    arguments = read_object(body.removesuffix("```"))
    if not fence or not body.endswith("```") or not is_name(name) or arguments is None:
        return None
    return ToolCall(name, arguments)


def _bare_call(name: str, arguments: str) -> ToolCall | None:
    """A call as V3.1 writes it: the name, the separator, and JSON without a fence."""
    found = read_object(arguments)
    return ToolCall(name, found) if is_name(name) and found is not None else None


def _without_frame(text: str) -> str:
    """What stands between calls, but for the tokens around all of them and blanks."""
    inner = text.removeprefix(CALLS_BEGIN).removesuffix(CALLS_END)
    return inner if inner.strip() else ""
