"""OpenAI's Responses API, read: its fields, and the chat that a request asks for.

The server keeps nothing: a conversation is sent whole each time, and what refers to a stored one
is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from llamaseek.errors import bad_value
from llamaseek.serve.wire.conversation import TranslatedMessages, check_keys, of_kind, text_parts
from llamaseek.serve.wire.fields import (
    ChatFields,
    FunctionOf,
    JsonObject,
    MaxTokens,
    Messages,
    Sampled,
    SchemaOf,
    Strict,
    TextFormat,
)

SHARED = frozenset(Sampled.model_fields) | {"parallel_tool_calls", "chat_template_kwargs"}
"""Fields that a chat has by the same names."""
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}
ROLES = ("user", "assistant", "system", "developer")
PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
THOUGHTS = {"reasoning_text": "text", "summary_text": "text"}
NOTHING = frozenset[str]()
MARKS = frozenset({"type", "id", "status"})
"""Keys of every item, which the model is not shown."""


class JsonSchemaFormat(SchemaOf):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"]


class TextConfig(Strict):
    """What the text of an answer has to be."""

    format: (
        Annotated[TextFormat | JsonObject | JsonSchemaFormat, Field(discriminator="type")] | None
    ) = None


class FunctionTool(FunctionOf):
    """A function that the model may call."""

    type: Literal["function"]


class NamedChoice(Strict):
    """The function that has to be called."""

    type: Literal["function"]
    name: str


class Nothing(Strict):
    """An object whose fields may only ask for nothing."""


class ResponsesFields(Sampled):
    """The body of `/v1/responses`."""

    input: str | Annotated[Messages, Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=1024, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream_options: Nothing | None = None
    reasoning: Nothing | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    """Reasoning is returned as text, and read as text when it is sent back."""


def read_responses(fields: ResponsesFields) -> tuple[ChatFields, Mapping[str, str]]:
    """The chat that a request asks for, and what it calls the chat's fields.

    UserError, naming the field, for items that are not supported.
    """
    talk = TranslatedMessages()
    if fields.instructions:
        talk.add({"role": "system", "content": fields.instructions}, "instructions", "instructions")
    if isinstance(fields.input, str):
        talk.add({"role": "user", "content": fields.input}, "input", "input")
    else:
        for index, item in enumerate(fields.input):
            kind = of_kind(item, ITEMS, f"input[{index}]", "message")
            ITEMS[kind](talk, item, f"input[{index}]")
    given = fields.model_dump(include=set(SHARED), exclude_unset=True)
    chat = ChatFields.model_validate(
        {
            **given,
            "messages": talk.whole("input"),
            "max_tokens": fields.max_output_tokens,
            "response_format": _format(fields.text),
            "tools": [_tool(tool) for tool in fields.tools or []],
            "tool_choice": _choice(fields.tool_choice),
        }
    )
    return chat, NAMES | talk.names


def _message(talk: TranslatedMessages, item: dict[str, Any], where: str) -> None:
    check_keys(item, MARKS | {"role", "content", "phase"}, where)
    role = item.get("role")
    if role not in ROLES:
        raise bad_value(f"{where}.role", role, ", ".join(ROLES))
    content = text_parts(item.get("content"), PARTS, NOTHING, f"{where}.content")
    if role == "assistant":
        talk.say(content, where)
    else:
        talk.add({"role": role, "content": content}, where)


def _call(talk: TranslatedMessages, item: dict[str, Any], where: str) -> None:
    check_keys(item, MARKS | {"call_id", "name", "arguments"}, where)
    talk.call(_id(item, where), item.get("name"), item.get("arguments"), where, "arguments")


def _output(talk: TranslatedMessages, item: dict[str, Any], where: str) -> None:
    check_keys(item, MARKS | {"call_id", "output"}, where)
    content = text_parts(item.get("output"), PARTS, NOTHING, f"{where}.output")
    if not isinstance(content, str | list):
        raise bad_value(f"{where}.output", content, "a string, or parts of text")
    result = {"role": "tool", "tool_call_id": _id(item, where), "content": content}
    talk.add(result, where, f"{where}.output")


def _reasoning(talk: TranslatedMessages, item: dict[str, Any], where: str) -> None:
    check_keys(item, MARKS | {"content", "summary"}, where)
    read = partial(text_parts, kinds=THOUGHTS, known=NOTHING)
    for key in ("content", "summary"):
        if parts := read(item.get(key) or [], where=f"{where}.{key}"):
            if not isinstance(parts, list):
                raise bad_value(f"{where}.{key}", parts, "a list of parts")
            talk.reason("".join(part["text"] for part in parts), where)
            return


def _id(item: dict[str, Any], where: str) -> str:
    given = item.get("call_id")
    if not isinstance(given, str):
        raise bad_value(f"{where}.call_id", given, "a string")
    return given


ITEMS = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "reasoning": _reasoning,
}


def _format(text: TextConfig | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    given = text.format.model_dump(by_alias=True, exclude_unset=True)
    if given["type"] != "json_schema":
        return given
    return {"type": given.pop("type"), "json_schema": given}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    given = tool.model_dump(exclude_unset=True)
    return {"type": given.pop("type"), "function": given}


def _choice(choice: str | NamedChoice | None) -> Any:
    if isinstance(choice, NamedChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return choice
