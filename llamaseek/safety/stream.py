"""A conversation behind a guard: nothing is answered, and nothing shown, that it has not cleared.

This fails closed: without a verdict nothing passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from llamaseek.safety.verdict import GuardError, Verdict
from llamaseek.text.messages import Message

T = TypeVar("T")

SENTENCE = re.compile(r"[.!?…。！？]['\")\]]*\s|\n")
LONGEST = 400  # characters that wait without the end of a sentence


@dataclass
class HeldText(Generic[T]):
    """The answer so far, and the parts of it (with their text) that wait for a verdict.

    A piece is due at the end of a sentence or line, and at LONGEST characters without one.
    """

    generated: str = ""
    parts: list[T] = field(default_factory=list)
    _waiting: str = ""

    def add(self, part: T, text: str) -> bool:
        """Hold a part; whether it is time to have all that was said judged."""
        self.generated += text
        self._waiting += text
        self.parts.append(part)
        return len(self._waiting) >= LONGEST or SENTENCE.search(self._waiting) is not None

    def clear(self) -> list[T]:
        """Let go of everything held, which was found safe."""
        parts, self.parts, self._waiting = self.parts, [], ""
        return parts

    @property
    def waits(self) -> bool:
        """Whether some text has not been judged."""
        return bool(self._waiting)


class Judge(Protocol):
    """Anything that judges the last turn of a conversation, as `Guard` does."""

    def check(self, messages: Sequence[Message]) -> Verdict: ...


class Refused(Exception):
    """A turn did not pass; `verdict` says why, or is None where the guard gave none."""

    def __init__(self, whose: str, verdict: Verdict | None, reason: str) -> None:
        super().__init__(f"{whose} was refused by the guard ({reason})")
        self.verdict = verdict


def require_safe(judge: Judge, messages: Sequence[Message]) -> Verdict:
    """The verdict on the last turn, which is safe; Refused where it is not, or there is none."""
    whose = "the message" if messages[-1]["role"] == "user" else "the answer"
    try:
        verdict = judge.check(messages)
    except GuardError as error:
        raise Refused(whose, None, f"no verdict: {error}") from error
    if not verdict.safe:
        raise Refused(whose, verdict, verdict.summary)
    return verdict


def guarded(judge: Judge, messages: Sequence[Message], pieces: Iterable[str]) -> Iterator[str]:
    """Answer `messages` with the text of `pieces`, each passed on when all so far is safe.

    The last message is judged before `pieces` is started; Refused, then or later, ends it.
    """
    require_safe(judge, messages)
    held: HeldText[str] = HeldText()
    for text in pieces:
        if held.add(text, text):
            require_safe(judge, [*messages, _answer(held)])
            yield from held.clear()
    if held.waits:
        require_safe(judge, [*messages, _answer(held)])
    yield from held.clear()


def _answer(held: HeldText[str]) -> Message:
    return {"role": "assistant", "content": held.generated}
