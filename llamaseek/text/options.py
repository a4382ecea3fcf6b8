"""What a conversation's format leaves open."""

from __future__ import annotations

from dataclasses import dataclass

from llamaseek.errors import bad_value
from llamaseek.text.llama3_calls import FORMS


@dataclass(frozen=True)
class ChatOptions:
    """How to write a conversation. Only `format` concerns DeepSeek-V3; the rest is Llama 3's.

    `format`: a name of `llamaseek.text.chat.FORMATS`; None is the tokenizer's own.
    `date`: the day after `Today Date:`, as `26 Jul 2024`; None is the format's own.
    `built_in_tools`: turns the ipython environment on, and names what it has besides code
    (`brave_search`, `wolfram_alpha`); None leaves it off.
    `tools_in_user_message`: definitions before the first user message, else in the system's.
    `call_form`: `json`, or Llama 3.2's `python_list`, or `function_tag`.
    Raises UserError for a form that does not exist.
    """

    format: str | None = None
    date: str | None = None
    built_in_tools: tuple[str, ...] | None = None
    tools_in_user_message: bool = True
    call_form: str = "json"

    def __post_init__(self) -> None:
        if self.call_form not in FORMS:
            raise bad_value("call_form", self.call_form, ", ".join(FORMS))
