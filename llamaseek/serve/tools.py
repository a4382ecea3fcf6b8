"""Tools in a chat: what the model is shown, and how it is held to calling one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llamaseek.engine.constrain import JSON_STYLE, Constraint
from llamaseek.errors import UserError, bad_value
from llamaseek.serve.fields import ChatFields, FunctionOf, NamedTool
from llamaseek.serve.options import Limits
from llamaseek.text.chat import TEMPLATE
from llamaseek.text.parse import family_of
from llamaseek.text.special import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END
from llamaseek.text.tokenizer import Tokenizer


def shown_tools(fields: ChatFields, tokenizer: Tokenizer, limits: Limits) -> list[dict[str, Any]]:
    """The definitions that the model sees, as they were sent; none where it may not call.

    UserError for too many, for names twice, for a choice without tools, and for a format whose
    calls nobody could read back.
    """
    tools = fields.tools or []
    names = [tool.function.name for tool in tools]
    if not tools and fields.tool_choice not in (None, "none", "auto"):
        raise UserError("tool_choice: asks for a call, but there are no tools")
    if len(tools) > limits.tools:
        raise UserError(f"tools: {len(tools)} are too many; at most {limits.tools} may be")
    if len(set(names)) < len(names):
        raise UserError("tools: two of them have the same name")
    if isinstance(fields.tool_choice, NamedTool) and fields.tool_choice.function.name not in names:
        raise bad_value("tool_choice", fields.tool_choice.function.name, ", ".join(names))
    if not tools or fields.tool_choice == "none":
        return []
    if family_of(tokenizer) == TEMPLATE:
        raise UserError("tools: this model's chat template writes calls in a form not known here")
    return [tool.model_dump(exclude_unset=True) for tool in tools]


def call_constraint(fields: ChatFields, tokenizer: Tokenizer) -> Constraint | None:
    """What holds an answer to a call of one of the tools, where `tool_choice` asks for that."""
    choice = fields.tool_choice
    if choice in (None, "none", "auto") or not fields.tools:
        return None
    functions = [tool.function for tool in fields.tools]
    if isinstance(choice, NamedTool):
        functions = [each for each in functions if each.name == choice.function.name]
    if family_of(tokenizer) == "deepseek_v3":
        return Constraint("lark", deepseek_grammar(functions, tokenizer))
    return Constraint("json_schema", json.dumps(llama3_schema(functions)))


def llama3_schema(functions: Sequence[FunctionOf]) -> dict[str, Any]:
    """Llama 3's call as a schema: `{"name": …, "parameters": {…}}`."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each.name}, "parameters": arguments(each)},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for each in functions
    ]
    return {"anyOf": calls} if len(calls) > 1 else calls[0]


def deepseek_grammar(functions: Sequence[FunctionOf], tokenizer: Tokenizer) -> str:
    """DeepSeek-V3's call as a Lark grammar; `<[id]>` is a token by its id."""

    def token(name: str) -> str:
        return f"<[{tokenizer.id_of(name)}]>"

    start = f'start: {token(CALLS_BEGIN)} {token(CALL_BEGIN)} "function" {token(CALL_SEP)} call '
    lines = [start + f'"\\n```" {token(CALL_END)} {token(CALLS_END)}']
    lines.append("call: " + " | ".join(f"call{n}" for n in range(len(functions))))
    for number, each in enumerate(functions):
        opening = json.dumps(f"{each.name}\n```json\n")
        lines.append(f"call{number}: {opening} arguments{number}")
        schema = {**arguments(each), "x-guidance": JSON_STYLE}
        lines.append(f"arguments{number}: %json {json.dumps(schema)}")
    return "\n".join(lines)


def arguments(function: FunctionOf) -> dict[str, Any]:
    """The schema of a function's arguments: an object, whatever else it says."""
    return {"type": "object", **(function.parameters or {})}
