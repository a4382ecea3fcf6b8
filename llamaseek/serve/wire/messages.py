"""Anthropic's Messages API, read: its fields, and the chat that a request asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from llamaseek.errors import UserError, bad_value
from llamaseek.serve.wire.conversation import TranslatedMessages, check_keys, of_kind, text_parts
from llamaseek.serve.wire.fields import LARGEST, ChatFields, Messages, Strict, Texts

NAMES = {
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
ROLES = ("user", "assistant", "system")
TEXT = {"text": "text"}
MARKS = frozenset({"cache_control", "citations"})
"""Prefixes are cached without being asked; citations of an earlier answer are no text."""
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
FAILED = "Error: "
"""Stands before the result of a call that is marked as failed."""


class MessagesTool(Strict):
    """A function that the model may call; `strict` holds its calls to `input_schema`."""

    type: Literal["custom"] | None = None
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None


class ToolChoice(Strict):
    """Whether the model may or has to call, and which function."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Strict):
    """Who asks."""

    user_id: str | None = None


class Thinking(Strict):
    """A model's reasoning is turned on by `chat_template_kwargs`, where its template has that."""

    type: Literal["disabled"]


class OutputFormat(Strict):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """What the answer has to be."""

    format: OutputFormat | None = None


class CountTokensFields(Strict):
    """The body of `/v1/messages/count_tokens`."""

    model: str
    messages: Annotated[Messages, Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=1024, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesFields(CountTokensFields):
    """The body of `/v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1, le=LARGEST)]
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stop_sequences: Texts | None = None
    stream: bool | None = None
    metadata: Metadata | None = None


SAME = frozenset({"model", "temperature", "top_p", "top_k", "seed", "chat_template_kwargs"})
"""Fields that a chat has by the same names."""


def read_messages(fields: CountTokensFields) -> tuple[ChatFields, Mapping[str, str]]:
    """The chat that a request asks for, and what it calls the chat's fields.

    UserError, naming the field, for what is not supported.
    """
    talk = TranslatedMessages()
    if fields.system:
        content = _texts(fields.system, "system")
        talk.add({"role": "system", "content": content}, "system", "system")
    for index, message in enumerate(fields.messages):
        _read(talk, message, f"messages[{index}]")
    made: dict[str, Any] = {
        **fields.model_dump(include=set(SAME), exclude_unset=True),
        "messages": talk.whole("messages"),
        "tools": [_tool(tool) for tool in fields.tools or []],
        **_choice(fields.tool_choice),
    }
    if fields.output_config is not None and fields.output_config.format is not None:
        schema = {"name": "output", "schema": fields.output_config.format.schema_}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(fields, MessagesFields):
        user = fields.metadata.user_id if fields.metadata else None
        made |= {"max_tokens": fields.max_tokens, "stop": fields.stop_sequences, "user": user}
    return ChatFields.model_validate(made), NAMES | talk.names


def _read(talk: TranslatedMessages, message: dict[str, Any], where: str) -> None:
    check_keys(message, frozenset({"role", "content"}), where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise bad_value(f"{where}.role", role, ", ".join(ROLES))
    if not isinstance(content, list):
        say = talk.say if role == "assistant" else _adder(talk, role)
        say(content, where)
        return
    if not content and role != "assistant":
        raise UserError(f"{where}.content: is empty")
    blocks = ASSISTANT if role == "assistant" else USER if role == "user" else SYSTEM
    texts: list[Any] = []
    for index, block in enumerate(content):
        here = f"{where}.content[{index}]"
        if not isinstance(block, dict):
            raise UserError(f"{here}: must be an object with a type")
        kind = of_kind(block, blocks, here)
        if kind == "text":
            check_keys(block, MARKS | {"type", "text"}, here)
            texts.append(block)
            continue
        _end_texts(talk, role, texts, where)
        blocks[kind](talk, block, here)
    _end_texts(talk, role, texts, where)


def _adder(talk: TranslatedMessages, role: str) -> Any:
    return lambda content, origin: talk.add({"role": role, "content": content}, origin)


def _end_texts(talk: TranslatedMessages, role: str, texts: list[Any], where: str) -> None:
    """The text blocks in a row as the content of one message."""
    if texts:
        say = talk.say if role == "assistant" else _adder(talk, role)
        say(_texts(list(texts), f"{where}.content"), where)
        texts.clear()


def _texts(content: Any, where: str) -> Any:
    return text_parts(content, TEXT, MARKS, where)


def _thinking(talk: TranslatedMessages, block: dict[str, Any], where: str) -> None:
    check_keys(block, frozenset({"type", "thinking", "signature"}), where)
    if not isinstance(block.get("thinking"), str):
        raise bad_value(f"{where}.thinking", block.get("thinking"), "a string")
    talk.reason(block["thinking"], where)


def _tool_use(talk: TranslatedMessages, block: dict[str, Any], where: str) -> None:
    check_keys(block, MARKS | {"type", "id", "name", "input", "caller"}, where)
    given = block.get("input")
    if not isinstance(given, dict):
        raise bad_value(f"{where}.input", given, "an object")
    talk.call(_id(block, "id", where), block.get("name"), given, where, "input")


def _tool_result(talk: TranslatedMessages, block: dict[str, Any], where: str) -> None:
    check_keys(block, MARKS | {"type", "tool_use_id", "content", "is_error"}, where)
    content = _texts(block.get("content") or "", f"{where}.content")
    if not isinstance(content, str | list):
        raise bad_value(f"{where}.content", content, "a string, or blocks of text")
    if block.get("is_error"):
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        content = FAILED + text
    id = _id(block, "tool_use_id", where)
    talk.add({"role": "tool", "tool_call_id": id, "content": content}, where)


def _id(block: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(block.get(key), str):
        raise bad_value(f"{where}.{key}", block.get(key), "a string")
    found: str = block[key]
    return found


SYSTEM: dict[str, Any] = {"text": None}
USER: dict[str, Any] = {"text": None, "tool_result": _tool_result}
ASSISTANT: dict[str, Any] = {"text": None, "thinking": _thinking, "tool_use": _tool_use}
"""What may be in whose message; texts in a row are read together."""


def _tool(tool: MessagesTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if (choice.type == "tool") != (choice.name is not None):
        raise bad_value("tool_choice.name", choice.name, "a tool's name with type tool, else none")
    named = {"type": "function", "function": {"name": choice.name}}
    return {
        "tool_choice": CHOICES.get(choice.type, named),
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }
