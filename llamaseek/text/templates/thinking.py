"""The reasoning of an answer that is in the loss, if the template leaves it out.

Templates leave out the reasoning of earlier answers, and those of DeepSeek-R1 and V3.1 that of the
last one, too. What a model is to learn, it goes on with from the generation prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamaseek.errors import UserError
from llamaseek.text.messages import Message
from llamaseek.text.special import END_THINK, THINK
from llamaseek.text.templates.spans import Render, Span

AT_START = re.compile(rf"\s*{THINK}(.*?){END_THINK}", re.DOTALL)
AT_END = re.compile(rf"{THINK}(\s*)$")


def with_reasoning(
    render: Render, messages: Sequence[Message], text: str, spans: list[Span], place: str
) -> tuple[str, list[Span]]:
    """A rendered conversation and its spans, with the reasoning of the last message.

    `place` is where the template comes from. Raises UserError where the template leaves the
    reasoning out and its generation prompt does not open a reasoning part either.
    """
    reasoning, (begin, end) = reasoning_in(messages[-1]), spans[-1]
    if reasoning is None or reasoning.strip() in text[begin:end]:
        return text, spans
    prompt = render(messages[:-1], True)
    opened = AT_END.search(prompt)
    if opened is None or not text.startswith(prompt[: opened.start()]):
        raise UserError(
            f"messages[{len(messages) - 1}]: the chat template of {place} leaves its reasoning "
            "out; allowed: a template that writes it, or chat_template_kwargs with which it opens "
            "a reasoning part"
        )
    answer, blanks = text[begin:end], opened[1]
    if not answer.startswith(END_THINK):
        answer = blanks + END_THINK + 2 * blanks + answer.lstrip("\n")
    whole = prompt + reasoning + answer
    return whole, [*spans[:-1], (len(prompt), len(whole))]


def reasoning_in(message: Message) -> str | None:
    """The reasoning of an assistant's message: a field of its own, or the start of its content."""
    content = message.get("content")
    if message["role"] != "assistant" or message.get("reasoning_content") is not None:
        return message.get("reasoning_content")
    found = AT_START.match(content) if isinstance(content, str) else None
    return found[1].strip("\n") if found else None
