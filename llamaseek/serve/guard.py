"""Where a guard stands in the chat route: before a conversation is answered, and on the way out.

Whatever goes wrong in a guard is raised as `GuardFailed`, and nothing passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llamaseek.text.events import Event
from llamaseek.text.messages import Message


class GuardFailed(Exception):
    """The guard gave no usable verdict; the answer is withheld."""


@dataclass(frozen=True)
class Refusal:
    """What is said in place of an unsafe message; `categories` as Llama Guard names them."""

    text: str
    categories: tuple[str, ...] = ()
    role: str = "user"
    probability: float | None = field(default=None)


class Watch(Protocol):
    """Follows one answer as it comes."""

    async def push(self, events: Sequence[Event]) -> list[Event] | Refusal:
        """The events that are cleared by now, or why no more may come."""
        ...

    async def finish(self) -> list[Event] | Refusal:
        """What was held back, or why it may not come."""
        ...


class ChatGuard(Protocol):
    """Judges both sides of a conversation."""

    async def check(self, messages: Sequence[Message]) -> Refusal | None:
        """The last user turn: None where it may be answered."""
        ...

    def watch(self, messages: Sequence[Message]) -> Watch:
        """What follows one answer to these messages."""
        ...
