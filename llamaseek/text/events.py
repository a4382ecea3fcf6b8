"""What goes into a reader of a model's output, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Control:
    """A control token in a model's output, by its name."""

    name: str


@dataclass(frozen=True)
class Content:
    """More of what is said to the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """One whole call of a tool."""

    name: str
    arguments: dict[str, Any]


Event = Content | Reasoning | ToolCall


def said(text: str) -> list[Event]:
    """The text as an event, or no event where there is none."""
    return [Content(text)] if text else []
