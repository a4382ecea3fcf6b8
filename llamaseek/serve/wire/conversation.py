"""Messages of a chat made from another protocol's, and errors in that protocol's words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llamaseek.errors import UserError, shorten
from llamaseek.serve.wire.errors import ApiError, as_api_error
from llamaseek.serve.wire.fields import is_idle
from llamaseek.text.messages import Message


@dataclass
class TranslatedMessages:
    """Messages as they are made; `names` says where the client wrote what is in them.

    What an assistant reasons, says and calls in a row becomes one message, as its answer was one.
    """

    messages: list[Message] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    _saying: Message | None = None

    def add(self, message: Message, origin: str, content: str | None = None) -> None:
        """A message that was written at `origin`, and its content at `content`."""
        here = f"messages[{len(self.messages)}]"
        self.names |= {here: origin, f"{here}.content": content or f"{origin}.content"}
        self.messages.append(message)
        self._saying = None

    def reason(self, text: str, origin: str) -> None:
        """An assistant's reasoning, which comes before all else of its answer."""
        if self._saying is None or self._saying["content"] or "tool_calls" in self._saying:
            self._begin(origin)
        assert self._saying is not None
        self._saying["reasoning_content"] = self._saying.get("reasoning_content", "") + text

    def say(self, content: Any, origin: str) -> None:
        """An assistant's text."""
        if self._saying is None or self._saying["content"] or "tool_calls" in self._saying:
            self._begin(origin)
        assert self._saying is not None
        self._saying["content"] = content
        self.names[f"{self._here}.content"] = f"{origin}.content"

    def call(self, id: str, name: Any, arguments: Any, origin: str, field: str) -> None:
        """An assistant's call, whose arguments were written in `field` of `origin`."""
        if self._saying is None:
            self._begin(origin)
        assert self._saying is not None
        calls = self._saying.setdefault("tool_calls", [])
        place = f"{self._here}.tool_calls[{len(calls)}]"
        self.names |= {place: origin, f"{place}.function": origin}
        self.names[f"{place}.function.arguments"] = f"{origin}.{field}"
        function = {"name": name, "arguments": arguments}
        calls.append({"id": id, "type": "function", "function": function})

    def whole(self, name: str) -> list[Message]:
        """All messages; UserError, by the `name` of their field, where there are none."""
        if not self.messages:
            raise UserError(f"{name}: has no message")
        return self.messages

    @property
    def _here(self) -> str:
        return f"messages[{len(self.messages) - 1}]"

    def _begin(self, origin: str) -> None:
        message: Message = {"role": "assistant", "content": []}
        self.add(message, origin)
        self._saying = message


def check_keys(given: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """UserError for a key that means nothing here, unless it asks for nothing."""
    for key, value in given.items():
        if key not in known and not is_idle(key, value):
            raise UserError(f"{where}.{shorten(key, 60)}: is not supported by this server")


def of_kind(given: Mapping[str, Any], kinds: Mapping[str, Any], where: str, usual: str = "") -> str:
    """The `type` of an item, which is `usual` where it has none; UserError for another."""
    kind = given.get("type", usual)
    if not isinstance(kind, str) or kind not in kinds:
        shown = shorten(repr(kind), 60)
        raise UserError(f"{where}.type: {shown} is not supported; allowed: {', '.join(kinds)}")
    return kind


def text_parts(content: Any, kinds: Mapping[str, str], known: frozenset[str], where: str) -> Any:
    """A content as a chat has it: a text, or parts of text.

    `kinds` names for each type of part the key of its text; `known` are keys beside those two.
    UserError for parts of other types; what is neither is left to whoever reads the message.
    """
    if not isinstance(content, list):
        return content
    found = []
    for index, part in enumerate(content):
        here = f"{where}[{index}]"
        if not isinstance(part, dict):
            raise UserError(f"{here}: must be an object with a type")
        key = kinds[of_kind(part, kinds, here)]
        check_keys(part, known | {"type", key}, here)
        if not isinstance(part.get(key), str):
            raise UserError(f"{here}.{key}: must be a string")
        found.append({"type": "text", "text": part[key]})
    return found


@contextmanager
def written_as(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that name a chat's fields name those that the client wrote in their place."""
    try:
        yield
    except (UserError, ApiError) as error:
        raise renamed(as_api_error(error), names) from None


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The error with another name for its field."""
    if error.param is None:
        return error
    for old in sorted(names, key=len, reverse=True):
        found = re.match(re.escape(old) + r"(?=$|[.\[])", error.param)
        if found:
            param = names[old] + error.param[found.end() :]
            start, colon, rest = error.detail.partition(":")
            message = f"{param}{colon}{rest}" if start == error.param else error.detail
            return ApiError(error.status_code, message, param, error.code)
    return error
