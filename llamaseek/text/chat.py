"""Llama 3's chat format: messages to token ids, with what each token is to training.

Format: `models/llama3/prompt_format.md` and `ChatFormat` of meta-llama/llama-models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamaseek.errors import UserError, bad_value
from llamaseek.text.special import BEGIN_OF_TEXT, END_HEADER, END_OF_TURN, START_HEADER

if TYPE_CHECKING:
    from llamaseek.text.tokenizer import Tokenizer

Message = dict[str, Any]
"""One turn: `role`, one of ROLES, and `content`, a string."""

ROLES = ("system", "user", "assistant", "ipython")

PROMPT, ANSWER, END = 0, 1, 2
"""Kinds of token: what the model is given, what it says, and the end of what it says."""

@dataclass(frozen=True)
class ChatIds:
    """A conversation as token ids, and for each of them its kind: PROMPT, ANSWER or END."""

    ids: list[int]
    kinds: list[int]


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False
) -> ChatIds:
    """The conversation as ids: one begin-of-text, then each turn with its header and end.

    Contents are encoded apart from special tokens, so whatever they spell stays text.
    `add_generation_prompt` opens an assistant's turn at the end.
    Raises UserError for a message without a known role or with content that is not a string.
    """
    check_messages(messages)
    ids, kinds = [tokenizer.bos_id], [PROMPT]
    for message in messages:
        answers = message["role"] == "assistant"
        header = _header_ids(tokenizer, message["role"])
        content = tokenizer.encode(message["content"].strip())
        ids += [*header, *content, tokenizer.eot_id]
        kinds += [PROMPT] * len(header) + [ANSWER if answers else PROMPT] * len(content)
        kinds.append(END if answers else PROMPT)
    if add_generation_prompt:
        header = _header_ids(tokenizer, "assistant")
        ids += header
        kinds += [PROMPT] * len(header)
    return ChatIds(ids, kinds)


def render(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The conversation as text. To show it, not to encode it: use `encode_chat` for ids.

    Raises UserError as `encode_chat` does.
    """
    check_messages(messages)
    turns = [f"{_header(m['role'])}{m['content'].strip()}{END_OF_TURN}" for m in messages]
    opening = _header("assistant") if add_generation_prompt else ""
    return BEGIN_OF_TEXT + "".join(turns) + opening


def check_messages(messages: Sequence[Message]) -> None:
    """Raises UserError, naming index and field, unless `messages` is a list of whole messages."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise bad_value("messages", messages, "a list of at least one message")
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)


def _check_message(where: str, message: Any) -> None:
    if not isinstance(message, Mapping):
        raise bad_value(where, message, "an object with role and content")
    for field in ("role", "content"):
        if field not in message:
            raise UserError(f"{where}.{field}: missing; a message has a role and a content")
    if message["role"] not in ROLES:
        raise bad_value(f"{where}.role", message["role"], ", ".join(ROLES))
    if not isinstance(message["content"], str):
        raise bad_value(f"{where}.content", message["content"], "a string")


def _header(role: str) -> str:
    return f"{START_HEADER}{role}{END_HEADER}\n\n"


def _header_ids(tokenizer: Tokenizer, role: str) -> list[int]:
    name, blank = tokenizer.encode(role), tokenizer.encode("\n\n")
    return [tokenizer.start_header_id, *name, tokenizer.end_header_id, *blank]
