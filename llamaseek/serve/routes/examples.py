"""`/examples`: prompts like those a model was trained on, which the chat page offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from fastapi import APIRouter, Request

from llamaseek.errors import UserError
from llamaseek.files import read_bytes, read_jsonl
from llamaseek.serve.service import Service

MOST, LONGEST = 6, 400  # prompts, and characters of one
ANSWERS = "after.jsonl"
"""File of a run folder with the held-out rows that the trained model was asked."""
router = APIRouter(include_in_schema=False)


@router.get("/examples")
async def examples(request: Request, model: str) -> dict[str, Any]:
    """Prompts for the model or adapter of this name; 404 where there is no such model."""
    service: Service = request.app.state.service
    service.adapter(model)
    folder = service.folders.get(model)
    return {"object": "list", "data": trained_on(folder) if folder else []}


def trained_on(folder: Path) -> list[str]:
    """The prompts of the `widget` of a folder's model card, then those that its run held out."""
    held_out = _held_out(folder.parent / ANSWERS) if folder.name in ("model", "adapter") else []
    found = [*_widget(folder / "README.md"), *held_out]
    texts = dict.fromkeys(text.strip() for text in found if isinstance(text, str))
    return [text for text in texts if 0 < len(text) <= LONGEST][:MOST]


def _held_out(path: Path) -> list[Any]:
    try:
        rows = read_jsonl(path) if path.is_file() else []
    except UserError:
        return []
    return [row.get("prompt") for row in rows if not row.get("text")]


def _widget(card: Path) -> list[Any]:
    """The examples of a model card's header, as the Hub has them: texts or conversations."""
    try:
        text = read_bytes(card).decode() if card.is_file() else ""
        header = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (UserError, OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return []
    widget = header.get("widget") if isinstance(header, dict) else None
    shown = widget if isinstance(widget, list) else []
    return [_asked(one) for one in shown if isinstance(one, dict)]


def _asked(example: dict[str, Any]) -> Any:
    messages = example.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return messages[-1].get("content")
    return example.get("text")
