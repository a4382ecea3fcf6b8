"""What a model said, read back: its content, and its calls of tools.

One reader a family (`llama3_parse.py`, `deepseek_parse.py`) takes a stream of text and control
tokens and gives events; however the stream is cut, the events add up to the same message. What
cannot be read as a call is content, as the model wrote it; nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from llamaseek.errors import unknown_name
from llamaseek.text.chat import FORMATS, TEMPLATE, format_of
from llamaseek.text.deepseek_v3 import DeepSeekReader
from llamaseek.text.llama3_parse import LlamaReader
from llamaseek.text.messages import Content, Control, Event, Message, Reasoning, ToolCall
from llamaseek.text.reasoning import TAGS, ReasoningReader, opens_reasoning, writes_reasoning
from llamaseek.text.special import CALLS_BEGIN, PYTHON_TAG
from llamaseek.text.tokenizer import StreamDecoder

if TYPE_CHECKING:
    from llamaseek.text.tokenizer import Tokenizer

__all__ = ["Content", "IdStream", "TextStream", "ToolCall", "message_of", "parse_ids", "parse_text"]


class MessageReader(Protocol):
    """Reads one message. `ends` and `marks` name the control tokens that mean something."""

    ends: frozenset[str]
    marks: frozenset[str]

    def read(self, item: str | Control) -> list[Event]:
        """The events of this text or control token."""

    def finish(self) -> list[Event]:
        """What was held, now that the message has ended; afterwards it reads another."""


class PlainReader:
    """Where no tool was offered there are no calls: all is content, up to the end."""

    def __init__(self, ends: frozenset[str]) -> None:
        self.ends, self.marks = ends, ends

    def read(self, item: str | Control) -> list[Event]:
        text = item if isinstance(item, str) else item.name
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        return []


def reader(family: str, calls: bool = True) -> MessageReader:
    """The reader of a chat format; without `calls` everything is content.

    The call format of an unknown template is not known either: everything is content.
    Raises UserError for a format that does not exist.
    """
    if family not in FORMATS:
        raise unknown_name("chat format", family, list(FORMATS))
    if family == TEMPLATE:
        return PlainReader(frozenset())
    made: MessageReader = DeepSeekReader() if family == "deepseek_v3" else LlamaReader()
    return made if calls else PlainReader(made.ends)


class Marks:
    """Cuts a text that comes in pieces at the marks that it spells."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._any = re.compile("(" + ("|".join(map(re.escape, self._names)) or "(?!)") + ")")
        self._held = ""

    def feed(self, text: str) -> list[str | Control]:
        """The parts known by now; what may be the beginning of a mark is held."""
        *whole, self._held = self._any.split(self._held + text)
        kept = _begun_mark(self._held, self._names)
        whole.append(self._held[: len(self._held) - kept])
        self._held = self._held[len(self._held) - kept :]
        return [Control(part) if part in self._names else part for part in whole if part]

    def flush(self) -> str:
        """What was held, at the end."""
        rest, self._held = self._held, ""
        return rest


class TextStream:
    """Events from a model's output as text, in which control tokens are spelled.

    `reasoning` reads `<think>…</think>` at the beginning apart.
    """

    def __init__(self, family: str, calls: bool = True, reasoning: bool = False) -> None:
        found = reader(family, calls)
        self._reader: MessageReader = ReasoningReader(found, opened=False) if reasoning else found
        self._marks, self._ended = Marks(self._reader.marks), False

    def feed(self, text: str) -> list[Event]:
        """The events of the next part of the output."""
        return [event for part in self._marks.feed(text) for event in self._read(part)]

    def finish(self) -> list[Event]:
        """What is left at the end; the stream is then ready for another output."""
        rest = self._marks.flush()
        events = [*(self._read(rest) if rest else []), *self._reader.finish()]
        self._ended = False
        return events

    def _read(self, part: str | Control) -> list[Event]:
        self._ended = self._ended or (isinstance(part, Control) and part.name in self._reader.ends)
        return [] if self._ended else self._reader.read(part)


class IdStream:
    """Events from a model's output as token ids: text that spells a control token is text.

    The reasoning of models that reason is read apart; `prompt` is what the output answers, whose
    end may open the reasoning.
    """

    def __init__(
        self, tokenizer: Tokenizer, calls: bool = True, prompt: Sequence[int] = ()
    ) -> None:
        self._names, self._hidden = tokenizer.specials, tokenizer.hidden_ids
        self._reader = reader(family_of(tokenizer), calls)
        spelled: frozenset[str] = frozenset()
        if writes_reasoning(tokenizer):
            self._reader = ReasoningReader(self._reader, opens_reasoning(tokenizer, prompt))
            spelled = TAGS.difference(self._names.values())
        self._decoder, self._spelled = StreamDecoder(tokenizer), Marks(spelled)
        self._ended = False

    def push(self, token_id: int) -> list[Event]:
        """The events of this token. Control tokens without a meaning here are left out."""
        name = self._names.get(token_id)
        if name is None or (name not in self._reader.marks and token_id not in self._hidden):
            return self._read(self._decoder.push(token_id))
        if name not in self._reader.marks:
            return []
        events = self._rest()
        self._ended = self._ended or name in self._reader.ends
        return events if self._ended else [*events, *self._reader.read(Control(name))]

    def finish(self) -> list[Event]:
        """What is left at the end; the stream is then ready for another output."""
        events = [*self._rest(), *self._reader.finish()]
        self._ended = False
        return events

    def _rest(self) -> list[Event]:
        """What the text before a control token, or before the end, still tells."""
        events = self._read(self._decoder.flush())
        rest = self._spelled.flush()
        return [*events, *(self._reader.read(rest) if rest and not self._ended else [])]

    def _read(self, text: str) -> list[Event]:
        if self._ended:
            return []
        return [event for part in self._spelled.feed(text) for event in self._reader.read(part)]


def parse_text(family: str, text: str, calls: bool = True, reasoning: bool = False) -> Message:
    """A whole output as a message; `family` is a name of `chat.FORMATS`."""
    stream = TextStream(family, calls, reasoning)
    return message_of([*stream.feed(text), *stream.finish()])


def parse_ids(
    tokenizer: Tokenizer, ids: Iterable[int], calls: bool = True, prompt: Sequence[int] = ()
) -> Message:
    """A whole output as a message; `prompt` is what it answers."""
    stream = IdStream(tokenizer, calls, prompt)
    events = [event for token_id in ids for event in stream.push(token_id)]
    return message_of([*events, *stream.finish()])


def message_of(events: Iterable[Event]) -> Message:
    """The events as an assistant's message, as `encode_chat` takes it."""
    events = list(events)
    content = "".join(event.text for event in events if isinstance(event, Content))
    message: Message = {"role": "assistant", "content": content}
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    if reasoning:
        message["reasoning_content"] = reasoning
    calls = [event for event in events if isinstance(event, ToolCall)]
    if calls:
        named = [{"name": call.name, "arguments": call.arguments} for call in calls]
        message["tool_calls"] = [{"type": "function", "function": each} for each in named]
    return message


def family_of(tokenizer: Tokenizer) -> str:
    """The format whose control tokens the tokenizer has, whatever template it came with."""
    if tokenizer.has(CALLS_BEGIN):
        return "deepseek_v3"
    if tokenizer.has(PYTHON_TAG):
        return "llama3"
    return format_of(tokenizer, tools=tokenizer.chat_template is None)


def _begun_mark(text: str, marks: frozenset[str]) -> int:
    """How many characters at the end of the text may begin a mark."""
    longest = min(len(text), max(map(len, marks), default=1) - 1)
    sizes = range(longest, 0, -1)
    return next((n for n in sizes if any(mark.startswith(text[-n:]) for mark in marks)), 0)
