"""The process that renders strangers' chat templates. Run as a script; it imports jinja2 alone.

A line of JSON in, `{"source", "variables", "limit"}`; a line out, `{"text"}` or `{"error"}`.
Who started it bounds its time by killing it; its memory and output are bounded here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Compiler = Callable[[str], Template]

MEMORY = 1 << 30
"""Bytes of address space."""


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what it encloses stands between two marks."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = self.call_method("_mark", [nodes.Name("generation_marks", "load")])
        return nodes.CallBlock(marks, [], [], body).set_lineno(line)

    def _mark(self, marks: Any, caller: Any) -> str:
        return f"{marks[0]}{caller()}{marks[1]}"


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox, with what transformers gives to templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def answer(compiled: Compiler, request: dict[str, Any]) -> dict[str, str]:
    """The rendered text, or what is wrong with the template."""
    try:
        return {"text": render(compiled(request["source"]), request)}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except MemoryError:
        return {"error": f"needs more than {MEMORY >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "nested too deep"}
    except Exception as error:  # a template can raise whatever an expression can
        return {"error": str(error) or type(error).__name__}


def render(template: Template, request: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(request["variables"]):
        pieces.append(piece)
        size += len(piece)
        if size > request["limit"]:
            raise TemplateError(f"writes more than {request['limit']} characters")
    return "".join(pieces)


def bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    bound_memory()
    compiled = lru_cache(maxsize=8)(environment().from_string)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(compiled, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
