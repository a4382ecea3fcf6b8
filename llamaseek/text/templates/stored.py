"""The chat templates of a model folder: where they are read from, which one is used, how kept.

The places and the order are transformers': `chat_template.jinja` and
`additional_chat_templates/NAME.jinja` come before the `chat_template` of tokenizer_config.json,
which is one template or a list of `{name, template}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaseek.errors import UserError, bad_value
from llamaseek.files import read_bytes
from llamaseek.text.llama3_calls import CHAT_TEMPLATE
from llamaseek.text.special import END_OF_TURN

TEMPLATE_FILE = "chat_template.jinja"
ADDITIONAL_FOLDER = "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BY_NAME = {"llama3": (CHAT_TEMPLATE, END_OF_TURN), "chatml": (CHATML, "<|im_end|>")}
"""Templates that a base model can be given, each with a token that it needs."""


@dataclass(frozen=True)
class ChatTemplates:
    """Templates by name. `place` is the folder or file they come from, for errors."""

    named: Mapping[str, str] = field(default_factory=dict)
    place: str = "tokenizer"

    def pick(self, tools: bool = False) -> str:
        """The template for a conversation with or without `tools`, by transformers' rule.

        Raises UserError, naming the place, where there is none to pick.
        """
        if tools and TOOL_USE in self.named:
            return self.named[TOOL_USE]
        if DEFAULT in self.named:
            return self.named[DEFAULT]
        if self.named:
            names = ", ".join(sorted(self.named))
            raise UserError(f"{self.place}: has chat templates {names}, but none named {DEFAULT}")
        raise UserError(
            f"{self.place}: has no chat template, so it cannot hold a conversation; give one with "
            f"--chat-template, in a recipe with tokenizer.chat_template, or as {TEMPLATE_FILE}"
        )

    def save(self, folder: Path) -> None:
        """Write each template into its own file, as transformers does."""
        for name, source in self.named.items():
            path = folder / TEMPLATE_FILE
            if name != DEFAULT:
                path = folder / ADDITIONAL_FOLDER / f"{name}.jinja"
                path.parent.mkdir(exist_ok=True)
            path.write_text(source, encoding="utf-8", newline="\n")


def read_templates(folder: Path, config: Mapping[str, Any]) -> ChatTemplates:
    """The templates of a folder; `config` is the content of its tokenizer_config.json.

    Raises UserError, naming the file, for what cannot be read.
    """
    files = {DEFAULT: folder / TEMPLATE_FILE} if (folder / TEMPLATE_FILE).is_file() else {}
    files |= {path.stem: path for path in sorted((folder / ADDITIONAL_FOLDER).glob("*.jinja"))}
    named = {name: read_text(path) for name, path in files.items()}
    return ChatTemplates(named or _configured(folder, config.get("chat_template")), str(folder))


def _configured(folder: Path, stored: Any) -> dict[str, str]:
    """The templates of the config file's `chat_template`: a text, or a list of named ones."""
    if stored is None:
        return {}
    if isinstance(stored, str):
        return {DEFAULT: stored}
    if isinstance(stored, list) and all(map(_is_named, stored)):
        return {item["name"]: item["template"] for item in stored}
    raise UserError(
        f"{folder / 'tokenizer_config.json'}: chat_template is neither a text nor a list of "
        "objects with a name and a template"
    )


def _is_named(item: Any) -> bool:
    """An object with a template and a name that is safe as a file's name."""
    if not isinstance(item, dict) or not isinstance(item.get("template"), str):
        return False
    name = item.get("name")
    return isinstance(name, str) and Path(name).name == name != ".."


def given_template(name: str) -> tuple[str, str | None]:
    """A template by its name in BY_NAME, with a token that it needs, or by its file's path.

    UserError where there is no such name or file.
    """
    if name in BY_NAME:
        return BY_NAME[name]
    if not Path(name).is_file():
        raise bad_value("chat template", name, f"{', '.join(BY_NAME)}, or the path of a file")
    return read_text(Path(name)), None


def read_text(path: Path) -> str:
    """A text file's content; UserError, naming it, where it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
