"""Conversations as ids by a tokenizer's own template.

Users' text goes through the template escaped, so that only what the template itself writes becomes
a control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llamaseek.errors import UserError
from llamaseek.text.llama3_calls import ChatOptions
from llamaseek.text.messages import Message, json_of
from llamaseek.text.pieces import ANSWER, END, PROMPT, ChatIds, Piece, to_ids
from llamaseek.text.special import (
    ASSISTANT_TAGS,
    END_OF_MESSAGE,
    END_OF_TURN,
    SENTENCE_END,
)
from llamaseek.text.templates.contents import CALLS, Calls, Contents, contents_of, for_template
from llamaseek.text.templates.escape import Escaper, unused_characters
from llamaseek.text.templates.spans import PrefixSpans, Span, marked_spans
from llamaseek.text.templates.thinking import with_reasoning

if TYPE_CHECKING:
    from llamaseek.text.tokenizer import Tokenizer

RESERVED = ("messages", "tools", "add_generation_prompt", "generation_marks", "chat_template")
FOLLOWED_BY_SPACE = " "
"""What transformers puts after the mark of an answer's open end, to see blanks being cut."""


def encode_by_template(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    options: ChatOptions,
    spans: bool = False,
) -> ChatIds:
    """The conversation as ids, by the tokenizer's own template.

    With `spans` the kinds say what the assistant says; without, only templates with
    `{% generation %}` tell. Raises UserError for a template that fails, takes too long, writes
    too much, does not show what is asked of it, or whose answers cannot be located.
    """
    chat = Templated.of(tokenizer, messages, tools, options)
    if options.continue_final_message:
        return to_ids(tokenizer, chat.pieces(chat.open_end(), []))
    text = chat.render(chat.messages, add_generation_prompt)
    text, found = marked_spans(text, chat.marks)
    if spans and not found:
        found = chat.prefix_spans(text)
    if spans and found:
        place = tokenizer.chat_templates.place
        text, found = with_reasoning(chat.plain, chat.messages, text, found, place)
    return to_ids(tokenizer, chat.pieces(text, found))


@dataclass(frozen=True)
class Templated:
    """A conversation, escaped, and the template that renders it.

    `marks` stand around what `{% generation %}` encloses; `probe` is a character that occurs
    nowhere.
    """

    tokenizer: Tokenizer
    source: str
    escaper: Escaper
    marks: tuple[str, str]
    probe: str
    messages: list[Message]
    variables: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        options: ChatOptions,
    ) -> Templated:
        """The conversation in the form that its template takes, rendered once to find it out."""
        source = tokenizer.chat_templates.pick(bool(tools))
        given = {"messages": list(messages), "tools": list(tools) or None}
        asked = _asked(options, source)
        check_shown(messages, tools, source)
        mark, begin, end, probe = unused_characters(json_of("messages", given | asked) + source, 4)
        escaper = Escaper(tokenizer.specials.values(), mark)
        variables = {
            **tokenizer.named_tokens,
            **escaper.put({"documents": None, **asked, "tools": given["tools"]}),
            "generation_marks": [begin, end],
        }
        chat = cls(tokenizer, source, escaper, (begin, end), probe, [], variables)
        return chat.taking(messages)

    def taking(self, messages: Sequence[Message]) -> Templated:
        """With these messages. UserError, as the template words it, where it takes none."""
        render = partial(self.render, add_generation_prompt=False)
        contents = self.tokenizer.template_contents.get(self.source)
        if contents is None:
            contents = contents_of(render, self.probe)
            self.tokenizer.template_contents[self.source] = contents
        if not any(message.get("tool_calls") for message in messages):
            return replace(self, messages=self._escaped(messages, contents, CALLS[0]))
        refused: list[UserError] = []
        for calls in CALLS:
            taken = self._escaped(messages, contents, calls)
            try:
                check_written(taken, render(taken))
            except UserError as error:
                refused.append(error)
                continue
            return replace(self, messages=taken)
        raise refused[0]

    def _escaped(
        self, messages: Sequence[Message], contents: Contents, calls: Calls
    ) -> list[Message]:
        """The messages with marks where text spells a control token; roles are compared as they
        are, and an assistant's own tags are its tokens.
        """
        names = set(self.tokenizer.specials.values())
        own = Escaper(names - ASSISTANT_TAGS, self.escaper.mark)
        found = []
        for message in for_template(messages, contents, calls):
            escaper = own if message["role"] == "assistant" else self.escaper
            found.append(escaper.put(message) | {"role": message["role"]})
        return found

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text, with all marks in it."""
        variables = {
            **self.variables,
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        return self.tokenizer.templates.render(self.source, variables)

    def plain(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text without the marks of `{% generation %}`."""
        return marked_spans(self.render(messages, add_generation_prompt), self.marks)[0]

    def prefix_spans(self, text: str) -> list[Span]:
        """What the assistant says in the rendered text, where the template does not mark it."""
        place = self.tokenizer.chat_templates.place
        contents = self.tokenizer.template_contents[self.source]
        answer = {"role": "assistant", "content": self.probe}
        (probe,) = for_template([answer], contents, CALLS[0])
        return PrefixSpans(self.plain, self.messages, text, probe, self.probe, place).all()

    def open_end(self) -> str:
        """The text up to the end of the last message's content, which is left open."""
        *before, last = self.messages
        content, mark = last["content"], self.probe + FOLLOWED_BY_SPACE
        if isinstance(content, list):
            marked = [*content[:-1], content[-1] | {"text": content[-1]["text"] + mark}]
            content = content[-1]["text"]
        else:
            marked = content + mark
        rendered = self.plain([*before, last | {"content": marked}], False)
        text, found, after = rendered.rpartition(self.probe)
        if not found or content.strip() not in text:
            place = self.tokenizer.chat_templates.place
            raise UserError(
                f"continue_final_message: the chat template of {place} leaves out parts of the "
                "last message"
            )
        kept = after.startswith(FOLLOWED_BY_SPACE)  # otherwise the template cuts blanks
        return text if kept else text.rstrip()

    def pieces(self, text: str, spans: Sequence[Span]) -> Iterator[Piece]:
        """The text cut at control tokens and where answers begin and end."""
        at = 0
        for begin, end in spans:
            yield from self._cut(text[at:begin])
            yield from self._answer(list(self.escaper.split(text[begin:end])))
            at = end
        yield from self._cut(text[at:])

    def _cut(self, text: str) -> Iterator[Piece]:
        for piece, control in self.escaper.split(text):
            if piece:
                yield Piece(piece, PROMPT, control)

    def _answer(self, parts: list[tuple[str, bool]]) -> Iterator[Piece]:
        """An answer up to its end token; a line break that a template puts after it is given."""
        last = self._last(parts)
        for number, (piece, control) in enumerate(parts):
            kind = ANSWER if number < last else END if number == last else PROMPT
            if piece:
                yield Piece(piece, kind, control)

    def _last(self, parts: Sequence[tuple[str, bool]]) -> int:
        """The place of an answer's end token: the last that is one, or else a control token that
        nothing but blanks follow; without any, the place after all.
        """
        ends = {self.tokenizer.specials.get(i) for i in self.tokenizer.end_ids}
        ends |= {END_OF_MESSAGE, END_OF_TURN, SENTENCE_END}
        controls = [number for number, (_, control) in enumerate(parts) if control]
        known = [number for number in controls if parts[number][0] in ends]
        if known:
            return known[-1]
        closing = controls and not "".join(text for text, _ in parts[controls[-1] + 1 :]).strip()
        return controls[-1] if closing else len(parts)


def check_shown(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], source: str
) -> None:
    """UserError for tools or calls that a template does not write anywhere."""
    if tools and not _reads(source, "tools"):
        raise UserError(
            "tools: this model's chat template does not show them to the model; allowed: a model "
            "whose template does, or another template by --chat-template, in a recipe "
            "tokenizer.chat_template"
        )
    for index, message in enumerate(messages):
        if message.get("tool_calls") and not _reads(source, "tool_calls"):
            raise UserError(
                f"messages[{index}].tool_calls: this model's chat template does not write calls"
            )


def check_written(messages: Sequence[Message], text: str) -> None:
    """UserError for a call that is not in the rendered text."""
    for index, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            if call["function"]["name"] not in text:
                raise UserError(
                    f"messages[{index}].tool_calls: this model's chat template leaves out a call"
                )


def _reads(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _asked(options: ChatOptions, source: str) -> dict[str, Any]:
    """The options by the names that Meta's templates read, and what else was asked of a template;
    what is not asked for is undefined.

    UserError for a name that the template does not read, unless it turns something off.
    """
    asked: dict[str, Any] = {}
    if options.date is not None:
        asked["date_string"] = options.date
    if options.built_in_tools is not None:
        asked["builtin_tools"] = list(options.built_in_tools)
    if not options.tools_in_user_message:
        asked["tools_in_user_message"] = False
    for name, value in options.chat_template_kwargs.items():
        if name in RESERVED:
            raise UserError(f"chat_template_kwargs.{name}: has a field of its own")
        if value and not _reads(source, name):
            raise UserError(
                f"chat_template_kwargs.{name}: this model's chat template does not read it"
            )
        asked[name] = value
    return asked
