"""Conversations as token ids, in the format of the tokenizer at hand.

The two families' formats are `llama3_chat.py` and `deepseek_chat.py`; any other tokenizer's own
template runs through `templates/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llamaseek.errors import UserError, unknown_name
from llamaseek.text.deepseek_v3 import deepseek_pieces
from llamaseek.text.llama3_calls import CHAT_TEMPLATE, OPTION_KWARGS, ChatOptions
from llamaseek.text.llama3_chat import VARIANTS, llama3_pieces
from llamaseek.text.messages import (
    ROLES,
    Message,
    Turn,
    read_messages,
    read_tools,
    with_reasoning,
)
from llamaseek.text.pieces import ANSWER, END, PROMPT, ChatIds, Piece, to_ids, to_text

if TYPE_CHECKING:
    from llamaseek.text.tokenizer import Tokenizer

__all__ = [
    "ANSWER",
    "CHAT_TEMPLATE",
    "END",
    "FORMATS",
    "PROMPT",
    "ROLES",
    "ChatIds",
    "ChatOptions",
    "Message",
    "check_messages",
    "encode_chat",
    "format_of",
    "render",
]

Tools = Sequence[Mapping[str, Any]]

TEMPLATE = "template"
"""The format of a tokenizer whose template is none of those known here: the template itself."""

FORMATS = (*VARIANTS, "deepseek_v3", TEMPLATE)

KNOWN_TEMPLATES = {
    "2700e963b7f7ca1b": "llama3",  # this package's before it knew tools
    "ba03a121d097859c": "llama3",
    "bc213ef03ac49e40": "llama3",  # TRL's, with generation marks
    "93c0e9aa3629bbd7": "llama3.1",
    "d82792f95932f1c9": "llama3.2",
    "3a3036eeb96ca0e4": "deepseek_v3",  # DeepSeek's API documentation
    "563b1ce7d61d50a9": "deepseek_v3",  # the one that circulates
}
"""Published templates by the beginning of their SHA-256, and the format that each means."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Tools | None = None,
    options: ChatOptions | None = None,
    spans: bool = False,
) -> ChatIds:
    """The conversation as ids, with the kind of each: what is given, what is said, its end.

    Contents are encoded apart from special tokens, so whatever they spell stays text.
    `add_generation_prompt` opens an assistant's turn at the end. `tools` are definitions as in
    OpenAI's API. `spans` asks for the kinds also where finding them costs more than the encoding:
    with a template that does not mark what the assistant says. Raises UserError, naming the
    field, for messages, tools and options that the format cannot say.
    """
    options = _with_defaults(options or ChatOptions(), tokenizer)
    turns, definitions = read_messages(messages), read_tools(tools)
    name = options.format or format_of(tokenizer, bool(definitions))
    check_open(turns, options, add_generation_prompt)
    if name == TEMPLATE:
        from llamaseek.text.templates.encode import encode_by_template

        return encode_by_template(
            tokenizer, messages, definitions, add_generation_prompt, options, spans
        )
    pieces = _pieces(name, turns, definitions, options, add_generation_prompt)
    return to_ids(tokenizer, pieces)


def render(
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Tools | None = None,
    options: ChatOptions | None = None,
) -> str:
    """The conversation as text, in the format `llama3` unless the options name another.

    To show it, not to encode it: use `encode_chat` for ids. Raises UserError as that does.
    """
    options = options or ChatOptions()
    turns, definitions = read_messages(messages), read_tools(tools)
    name = options.format or "llama3"
    check_open(turns, options, add_generation_prompt)
    return to_text(_pieces(name, turns, definitions, options, add_generation_prompt))


def check_messages(messages: Sequence[Message]) -> None:
    """Raises UserError, naming index and field, unless `messages` is a list of whole messages."""
    read_messages(messages)


def turn_end(tokenizer: Tokenizer) -> int | None:
    """The id of the token that ends an assistant's turn, if the chat format has one."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
    try:
        chat = encode_chat(tokenizer, messages, spans=True)
    except UserError:  # no template, or one for other conversations
        return None
    ends = [i for i, kind in zip(chat.ids, chat.kinds, strict=True) if kind == END]
    return ends[-1] if ends else None


def _with_defaults(options: ChatOptions, tokenizer: Tokenizer) -> ChatOptions:
    """With the tokenizer's own `chat_template_kwargs` where the options do not say otherwise."""
    kwargs = {**tokenizer.chat_template_kwargs, **options.chat_template_kwargs}
    return replace(options, chat_template_kwargs=kwargs) if kwargs else options


def check_open(turns: Sequence[Turn], options: ChatOptions, add_generation_prompt: bool) -> None:
    """UserError where `continue_final_message` is asked for and nothing can be continued."""
    if not options.continue_final_message:
        return
    if add_generation_prompt:
        raise UserError("continue_final_message: cannot be asked for with add_generation_prompt")
    if turns[-1].role != "assistant" or turns[-1].calls:
        raise UserError(
            "continue_final_message: needs a conversation that ends with an assistant's message "
            "without calls"
        )


def format_of(tokenizer: Tokenizer, tools: bool = False) -> str:
    """The name of the format that the tokenizer's template means.

    `tools` asks for the template of conversations with tools. Raises UserError for a tokenizer
    without a template.
    """
    template = tokenizer.chat_templates.pick(tools)
    if template == CHAT_TEMPLATE:
        return "llama3"
    lines = template.replace("\r\n", "\n").strip()
    digest = hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest()
    return KNOWN_TEMPLATES.get(digest[:16], TEMPLATE)


def _pieces(
    name: str, turns: list[Turn], tools: Tools, options: ChatOptions, add_generation_prompt: bool
) -> list[Piece]:
    if name not in (*VARIANTS, "deepseek_v3"):
        raise unknown_name("chat format", name, list(FORMATS))
    options = options.understood(tuple(OPTION_KWARGS) if name in VARIANTS else ())
    turns = [*turns[:-1], with_reasoning(turns[-1])]
    if name == "deepseek_v3":
        pieces = deepseek_pieces(turns, tools, add_generation_prompt)
    else:
        pieces = llama3_pieces(turns, tools, options, VARIANTS[name], add_generation_prompt)
    return pieces[:-1] if options.continue_final_message else pieces
