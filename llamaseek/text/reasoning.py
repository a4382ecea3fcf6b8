"""The reasoning part of a model's output, separated from its answer.

Reasoning models write `<think>…</think>` before what they answer; the templates of some open the
part themselves, so that the output begins inside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamaseek.text.messages import Control, Event, Reasoning
from llamaseek.text.special import END_THINK, THINK

if TYPE_CHECKING:
    from llamaseek.text.parse import MessageReader
    from llamaseek.text.tokenizer import Tokenizer

TAGS = frozenset({THINK, END_THINK})


def writes_reasoning(tokenizer: Tokenizer) -> bool:
    """Whether the model is one that reasons: it has a token `</think>`, or a template with it."""
    templates = tokenizer.chat_templates.named.values()
    return tokenizer.has(END_THINK) or any(END_THINK in source for source in templates)


def opens_reasoning(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether an answer to these ids begins inside of a reasoning part."""
    end = tokenizer.decode(prompt[-8:], skip_special=False)
    return end.rstrip().endswith(THINK) and writes_reasoning(tokenizer)


class ReasoningReader:
    """Reads one message: the reasoning itself, what follows by another reader.

    `opened` says that the message begins inside of the reasoning. Blanks around it are left out.
    """

    def __init__(self, answer: MessageReader, opened: bool) -> None:
        self._answer, self._opened = answer, opened
        self.ends, self.marks = answer.ends, answer.marks | TAGS
        self._begin()

    def _begin(self) -> None:
        self._thinking = self._opened
        self._ended = False  # whether there is, or was, a reasoning part before the answer
        self._answering = False
        self._blanks = ""
        self._thought = False

    def read(self, item: str | Control) -> list[Event]:
        """The events of this text or control token."""
        name = item.name if isinstance(item, Control) else None
        if self._answering:
            return self._answer.read(name if name in TAGS else item)
        if self._thinking and (isinstance(item, str) or name in TAGS):
            return self._think(item if isinstance(item, str) else item.name, name == END_THINK)
        if self._thinking:  # a call ends reasoning that was not closed
            self._thinking, self._ended, self._blanks = False, True, ""
        if name == THINK and not self._ended:
            self._thinking, self._blanks = True, ""
            return []
        return self._start_answer(item)

    def finish(self) -> list[Event]:
        """What was held, now that the message has ended."""
        held = [] if self._thinking or self._ended or not self._blanks else [self._blanks]
        events = [event for text in held for event in self._answer.read(text)]
        self._begin()
        return [*events, *self._answer.finish()]

    def _think(self, text: str, ends: bool) -> list[Event]:
        if ends:
            self._thinking, self._ended, self._blanks = False, True, ""
            return []
        if not self._thought:
            text = "" if text == THINK else text.lstrip()  # some models open it once more
        text = self._blanks + text
        kept = text.rstrip()
        self._blanks, self._thought = text[len(kept) :], self._thought or bool(kept)
        return [Reasoning(kept)] if kept else []

    def _start_answer(self, item: str | Control) -> list[Event]:
        if isinstance(item, str) and not item.strip():
            self._blanks += item
            return []
        before, self._blanks = "" if self._ended else self._blanks, ""
        self._answering = True
        if isinstance(item, str):
            return self._answer.read(item.lstrip() if self._ended else before + item)
        held = self._answer.read(before) if before else []
        return [*held, *self.read(item)]
