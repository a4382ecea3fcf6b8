"""A conversation behind a guard: nothing is answered, and nothing shown, that it has not cleared.

This fails closed: without a verdict nothing passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from llamaseek.safety.hold import Held
from llamaseek.safety.verdict import GuardError, Verdict
from llamaseek.text.messages import Message


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
    held: Held[str] = Held()
    for text in pieces:
        if held.add(text, text):
            require_safe(judge, [*messages, _answer(held)])
            yield from held.clear()
    if held.waits:
        require_safe(judge, [*messages, _answer(held)])
    yield from held.clear()


def _answer(held: Held[str]) -> Message:
    return {"role": "assistant", "content": held.said}
