"""Tools of a chat: their definitions in the prompt, and constraints on calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamaseek.engine.constrain import Constraint
from llamaseek.errors import UserError, bad_value
from llamaseek.serve.options import Limits
from llamaseek.serve.wire.fields import ChatFields, FunctionOf, NamedTool
from llamaseek.text.chat import TEMPLATE
from llamaseek.text.grammar import call_grammar
from llamaseek.text.messages import Message
from llamaseek.text.parse import family_of
from llamaseek.text.tokenizer import Tokenizer


def shown_tools(fields: ChatFields, tokenizer: Tokenizer, limits: Limits) -> list[dict[str, Any]]:
    """The definitions that the model sees, as they were sent; none where it may not call.

    UserError for too many, for names twice, for a choice without tools, and for a format whose
    calls nobody could read back.
    """
    tools = fields.tools or []
    names = [tool.function.name for tool in tools]
    if not tools and fields.tool_choice not in (None, "none", "auto"):
        raise UserError("tool_choice: requires a call, but there are no tools")
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


def one_call_a_turn(messages: Sequence[Message]) -> list[Message]:
    """The messages with the calls of one answer apart, each before its result.

    For chat templates that take one call a turn, such as Llama 3.1's. Where the results do not
    follow, each by its `tool_call_id`, nothing is changed.
    """
    apart: list[Message] = []
    waiting = list(messages)
    while waiting:
        message = waiting.pop(0)
        calls = message.get("tool_calls")
        calls = calls if isinstance(calls, list) else []
        ids = [call.get("id") for call in calls if isinstance(call, dict)]
        results = [each for each in waiting[: len(calls)] if each.get("role") == "tool"]
        following = {str(each.get("tool_call_id")): each for each in results}
        if len(calls) < 2 or len(ids) < len(calls) or sorted(map(str, ids)) != sorted(following):
            apart.append(message)
            continue
        for call in calls:
            apart += [{**message, "tool_calls": [call]}, following[str(call["id"])]]
            message = {**message, "content": None}
        del waiting[: len(calls)]
    return apart


def call_constraint(fields: ChatFields, tokenizer: Tokenizer) -> Constraint | None:
    """What holds an answer's calls to the schemas of their functions.

    A `tool_choice` that asks for a call holds the whole answer to one. Where the model chooses
    and a function is `strict`, or it may make one call alone, what it says is free until it calls;
    functions that are not strict then take any object. UserError for arguments that are no object.
    """
    choice, alone = fields.tool_choice, fields.parallel_tool_calls is False
    functions = [tool.function for tool in fields.tools or []]
    free = choice in (None, "auto")
    held_to = alone or any(function.strict for function in functions)
    if choice == "none" or not functions or (free and not held_to):
        return None
    if isinstance(choice, NamedTool):
        functions = [each for each in functions if each.name == choice.function.name]
    held = {each.name: arguments(each, free and not each.strict) for each in functions}
    return Constraint("lark", call_grammar(held, tokenizer, free, not alone))


def arguments(function: FunctionOf, loose: bool) -> dict[str, Any]:
    """The schema of a function's arguments: an object, `loose` any object."""
    wanted = {} if loose else function.parameters or {}
    if wanted.get("type", "object") != "object":
        name = f"tools: parameters.type of {function.name}"
        raise bad_value(name, wanted["type"], "object")
    return {**wanted, "type": "object"}
