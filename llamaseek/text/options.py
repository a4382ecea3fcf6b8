"""What a conversation's format leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llamaseek.errors import UserError, bad_value
from llamaseek.text.llama3_calls import FORMS

OPTION_KWARGS: dict[str, tuple[type, str]] = {
    "date_string": (str, "date"),
    "builtin_tools": (list, "built_in_tools"),
    "tools_in_user_message": (bool, "tools_in_user_message"),
}
"""What Meta's templates read by name: the type, and the option of the same meaning."""


@dataclass(frozen=True)
class ChatOptions:
    """How to write a conversation. Only `format` concerns DeepSeek-V3; the rest is Llama 3's.

    `format`: a name of `llamaseek.text.chat.FORMATS`; None is the tokenizer's own.
    `date`: the day after `Today Date:`, as `26 Jul 2024`; None is the format's own.
    `built_in_tools`: turns the ipython environment on, and names what it has besides code
    (`brave_search`, `wolfram_alpha`); None leaves it off.
    `tools_in_user_message`: definitions before the first user message, else in the system's.
    `call_form`: `json`, or Llama 3.2's `python_list`, or `function_tag`.
    `chat_template_kwargs`: what the template itself reads by these names, as in transformers and
    vLLM (`thinking`, `date_string`, …).
    `continue_final_message`: the last message, an assistant's, is left open to be continued.
    Raises UserError for a form that does not exist.
    """

    format: str | None = None
    date: str | None = None
    built_in_tools: tuple[str, ...] | None = None
    tools_in_user_message: bool = True
    call_form: str = "json"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        if self.call_form not in FORMS:
            raise bad_value("call_form", self.call_form, ", ".join(FORMS))

    def understood(self, names: Sequence[str]) -> ChatOptions:
        """With `chat_template_kwargs` as the options of the same meaning.

        `names` are those that the format reads, of OPTION_KWARGS. UserError for others, unless
        they turn something off, and for values of another type.
        """
        found: dict[str, Any] = {}
        for name, value in self.chat_template_kwargs.items():
            where = f"chat_template_kwargs.{name}"
            if name in names and value is not None:
                kind, option = OPTION_KWARGS[name]
                if not isinstance(value, kind):
                    raise bad_value(where, value, f"a {kind.__name__}")
                found[option] = tuple(value) if isinstance(value, list) else value
            elif value:
                raise UserError(f"{where}: this model's chat format does not read it")
        return replace(self, chat_template_kwargs={}, **found)
