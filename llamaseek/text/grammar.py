"""Calls of tools as Lark grammars, in each family's own form, alone or after free text.

A call in a grammar is what the family's reader reads as one, and free text is what it does not:
so whatever such an answer calls fits the function's schema. `<[id]>` is a token by its id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamaseek.text.parse import family_of
from llamaseek.text.special import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END
from llamaseek.text.special import PYTHON_TAG as TAG
from llamaseek.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions


# Only the whitespace of `json.dumps`: a weak model could otherwise repeat blanks without end.
JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


Functions = Mapping[str, Mapping[str, Any]]  # schemas of arguments by the functions' names
BLANK = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
"""What Llama 3's reader skips before a call; a regular expression's blanks are fewer."""


def call_grammar(
    functions: Functions, tokenizer: Tokenizer, free: bool, several: bool = True
) -> str:
    """The grammar of an answer that calls; `free`, of one that calls or says something.

    Llama 3's answer holds one call, DeepSeek-V3's `several` where it is free.
    """
    if family_of(tokenizer) == "deepseek_v3":
        return "\n".join(deepseek_grammar(functions, tokenizer, free, several))
    return "\n".join(llama3_grammar(functions, tokenizer, free))


def llama3_grammar(functions: Functions, tokenizer: Tokenizer, free: bool) -> list[str]:
    """`{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not.

    Free text does not begin like a call in any of the forms that are read.
    """
    opening = {name: f'{{"name": {json.dumps(name)}, "parameters": ' for name in functions}
    calls = _calls(functions, opening, "}")
    if not free:
        return ["start: call", *calls]
    start = "start: text? | call"
    if TAG in tokenizer.specials.values():  # Llama 3.0 has none
        start += f" | text? {_token(tokenizer, TAG)} call"
    return [
        start,
        f"text: TEXT\nTEXT: /(?s:.+)/ & ~/(?s:[{_escaped(BLANK)}]*(\\{{|\\[|<function=).*)/",
        *calls,
    ]


def deepseek_grammar(
    functions: Functions, tokenizer: Tokenizer, free: bool, several: bool = True
) -> list[str]:
    """Name and fenced JSON between control tokens, which text cannot spell."""
    begin, end, call_begin, call_end, sep = (
        _token(tokenizer, name) for name in (CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, CALL_SEP)
    )
    opening = {name: f"{name}\n```json\n" for name in functions}
    one = f'one: {call_begin} "function" {sep} call {call_end}'
    calls = [one, *_calls(functions, opening, "\n```")]
    if not free:
        return [f"start: {begin} one {end}", *calls]
    more = ' ("\\n" one)*' if several else ""
    return [f"start: text? | text? {begin} one{more} {end}", "text: TEXT\nTEXT: /(?s:.+)/", *calls]


def _calls(functions: Functions, opening: Mapping[str, str], closing: str) -> list[str]:
    """The rule `call`: any of the functions with arguments of its schema."""
    lines = ["call: " + " | ".join(f"call{n}" for n in range(len(functions)))]
    for number, (name, schema) in enumerate(functions.items()):
        before, after = json.dumps(opening[name]), json.dumps(closing)
        lines.append(f"call{number}: {before} arguments{number} {after}")
        held = json.dumps({**schema, "x-guidance": JSON_STYLE})
        lines.append(f"arguments{number}: %json {held}")
    return lines


def _token(tokenizer: Tokenizer, name: str) -> str:
    return f"<[{tokenizer.id_of(name)}]>"


def _escaped(characters: str) -> str:
    return "".join(f"\\u{{{ord(each):x}}}" for each in characters)
