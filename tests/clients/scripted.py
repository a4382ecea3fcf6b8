"""A server for clients: its model calls the tools it is given and writes JSON where it has to."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from llamaseek.engine.request import Request
from tests.serve.running import TOKENIZER
from tests.serve.spoken import Speech

STORY = "The red fox chased the blue bird."
TRIP = '{"city": "Bern", "days": 2}'
NAMED = re.compile(r'"name": "([\w.-]+)"')


class Scripted(Speech):
    """Says what fits a request: arguments of a schema, a call of the first tool, or a sentence."""

    def __init__(self) -> None:
        super().__init__(STORY)
        self._request = -1

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the answer that is due."""
        request = self.engine.scheduler.running[0].request
        if request.id != self._request:
            self._request = request.id
            self.say(answer_to(request))
        made = super().logits(hidden)
        at = len(self.engine.scheduler.running[0].generated)
        made[-1, self.ids[min(at, len(self.ids) - 1)]] += 50  # clients leave the temperature at 1
        return made


def answer_to(request: Request) -> str:
    """What is said to a prompt."""
    constraint = request.params.constraint
    if constraint is not None and constraint.kind == "json_schema":
        return TRIP
    prompt = TOKENIZER.decode(list(request.prompt), skip_special=False)
    last = prompt.rpartition("<|start_header_id|>assistant")[0]
    tools = last.rpartition("Given the following functions")[2] if "Given the" in last else ""
    found = NAMED.search(tools)
    if found is None or last.rpartition("<|start_header_id|>")[2].startswith("ipython"):
        return STORY
    given = TRIP if '"days"' in tools else '{"city": "Bern"}'
    return f'{{"name": "{found[1]}", "parameters": {given}}}'


class Recorder:
    """Keeps the requests that pass through to an app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and keep its method, path and JSON body."""
        body = bytearray()

        async def read() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        await self.app(scope, read, send)
        if scope["type"] == "http":
            given = json.loads(body) if body else None
            self.seen.append({"method": scope["method"], "path": scope["path"], "body": given})

    def take(self) -> list[dict[str, Any]]:
        """What was seen since the last time, each form of a request once."""
        forms, found = set(), []
        for request in self.seen:
            form = json.dumps([request["path"], _form(request["body"])])
            if form not in forms:
                forms.add(form)
                found.append(request)
        self.seen = []
        return found


def _form(value: Any) -> Any:
    """The keys of a body and the kinds of its texts, without what users wrote."""
    if isinstance(value, dict):
        kept = ("role", "type")
        return {key: each if key in kept else _form(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_form(each) for each in value]
    return type(value).__name__
