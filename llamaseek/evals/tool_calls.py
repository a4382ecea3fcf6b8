"""Exact tool calls, on rows as the Berkeley Function-Calling Leaderboard has them.

Functions reach the model in the words of Llama 3.1's chat template for tools in a user's message,
so that any chat model can be asked. A call is right if its name is the wanted one and each argument
one of the values allowed for it, to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamaseek.text.llama3_calls import hf_tools
from llamaseek.text.llama3_parse import plain_calls
from llamaseek.text.messages import ToolCall

HUB = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""What BFCL calls types of JSON Schema."""
Wanted = Mapping[str, Mapping[str, Sequence[Any]]]
"""One call: the function's name, and by argument the values allowed; "" allows leaving it out."""


def adapted(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its nested fields as JSON, since a table would give every row all their keys."""
    question = row.get("question")
    while isinstance(question, list) and question:
        question = question[-1]
    if isinstance(question, dict):
        question = question.get("content")
    found = {**row, "question": question}
    for key in ("function", "ground_truth"):
        if key in row and not isinstance(row[key], str):
            found[key] = json.dumps(row[key])
    return found


def prompt(doc: Mapping[str, Any]) -> str:
    """The functions, then the question."""
    given = json.loads(doc["function"])
    functions = [_schema(one) for one in (given if isinstance(given, list) else [given])]
    tools = [{"type": "function", "function": one} for one in functions]
    return hf_tools(tools, in_user_message=True) + str(doc["question"])


def _schema(value: Any) -> Any:
    """JSON Schema of BFCL's own types."""
    if isinstance(value, list):
        return [_schema(each) for each in value]
    if not isinstance(value, dict):
        return value
    named = {key: _schema(each) for key, each in value.items()}
    if isinstance(named.get("type"), str):
        named["type"] = TYPES.get(named["type"], named["type"])
    return named


def verdict(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether an answer is the wanted calls and nothing else, and whether they stand in it."""
    wanted = json.loads(doc["ground_truth"])
    return {
        "exact_match": float(same_calls(plain_calls(results[0]), wanted)),
        "call_in_text": float(
            same_calls(plain_calls(results[0]) or list(_calls_in(results[0])), wanted)
        ),
    }


def same_calls(calls: Sequence[ToolCall], wanted: Sequence[Wanted]) -> bool:
    """Whether each wanted call is made once, in any order, and no other."""
    left = list(calls)
    for want in wanted:
        match = next((call for call in left if _is(call, want)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _is(call: ToolCall, want: Wanted) -> bool:
    ((name, allowed),) = want.items()
    given = call.arguments
    return (
        call.name == name
        and set(given) <= set(allowed)
        and all(
            any(_equal(given[key], value) for value in values) if key in given else "" in values
            for key, values in allowed.items()
        )
    )


def _equal(given: Any, value: Any) -> bool:
    """The same JSON value; `true` is not 1, and 5.0 is 5."""
    if isinstance(given, bool) or isinstance(value, bool):
        return given is value
    return bool(given == value)


def _calls_in(text: str) -> Iterator[ToolCall]:
    """The calls among the JSON objects that stand in a text."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield from plain_calls(text[at:end])
        at = text.find("{", end)
