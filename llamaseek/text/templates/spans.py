"""What the assistant says in a conversation that a template has rendered.

Templates with `{% generation %}` mark it. For others, each assistant turn begins where the
rendering of the messages before it ends, generation prompt included, and ends where the rendering
of the messages up to it ends. Both must be beginnings of the whole rendering. Where they are not
(a template that looks ahead, or whose generation prompt opens a reasoning part), the turn is
replaced by one unused character, and the text around that character must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamaseek.errors import UserError
from llamaseek.text.messages import Message

Render = Callable[[Sequence[Message], bool], str]
"""The text of messages, with a generation prompt or without."""

Span = tuple[int, int]
"""Where the characters of an answer begin and end."""


def marked_spans(text: str, marks: tuple[str, str]) -> tuple[str, list[Span]]:
    """The text without the marks of `{% generation %}`, and what they enclose."""
    spans: list[Span] = []
    plain, start = "", 0
    for part in re.split(f"([{marks[0]}{marks[1]}])", text):
        if part == marks[0]:
            start = len(plain)
        elif part == marks[1]:
            spans.append((start, len(plain)))
        else:
            plain += part
    return plain, spans


@dataclass(frozen=True)
class PrefixSpans:
    """The spans of a conversation. `text` is its rendering, `probe` an answer whose content is the
    unused character `mark`, and `place` where the template comes from, for errors.
    """

    render: Render
    messages: Sequence[Message]
    text: str
    probe: Message
    mark: str
    place: str

    def all(self) -> list[Span]:
        """The span of each assistant message. Raises UserError where one cannot be found."""
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        return [self.of(turn) for turn in turns]

    def of(self, turn: int) -> Span:
        """The span of one assistant message, by its index."""
        begin, end = self._begin(turn), self._end(turn)
        if begin > end:
            raise self._unclear(turn)
        return begin, end

    def _begin(self, turn: int) -> int:
        begin = self._beginning(self.messages[:turn], True)
        if begin is not None:
            return begin
        before = self._around(turn, self.messages)[0]
        if not self.text.startswith(before):
            raise self._unclear(turn)
        return len(before)

    def _end(self, turn: int) -> int:
        if turn == len(self.messages) - 1:
            return len(self.text)
        end = self._beginning(self.messages[: turn + 1], False)
        if end is not None:
            return end
        after = self._around(turn, self.messages)[1]
        closing = self._around(turn, self.messages[: turn + 1])[1]
        if not self.text.endswith(after) or not after.startswith(closing):
            raise self._unclear(turn)
        return len(self.text) - len(after) + len(closing)

    def _beginning(self, messages: Sequence[Message], open_answer: bool) -> int | None:
        """How long these messages are, if they are the beginning of the whole text."""
        try:
            text = self.render(messages, open_answer) if messages else None
        except UserError:  # as for half a conversation, which some templates refuse
            return None
        return None if text is None or not self.text.startswith(text) else len(text)

    def _around(self, turn: int, messages: Sequence[Message]) -> tuple[str, str]:
        """The text before and after what changes in these messages with the turn's content."""
        changed = list(messages)
        changed[turn] = self.probe
        before, found, after = self.render(changed, False).partition(self.mark)
        if not found or self.mark in after:
            raise self._unclear(turn)
        return before, after

    def _unclear(self, turn: int) -> UserError:
        return UserError(
            f"{self.place}: its chat template renders the first {turn + 1} of "
            f"{len(self.messages)} messages differently when others follow, so the tokens of the "
            "assistant's answers cannot be located; mark them with {% generation %} in the template"
        )
