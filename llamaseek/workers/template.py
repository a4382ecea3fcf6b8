"""A worker's handler that renders chat templates of model folders, which are untrusted input.

Jobs are `{"source", "variables", "limit"}`, replies `{"text"}`. The template runs in jinja2's
immutable sandbox; `limit` bounds the characters it may write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Compiler = Callable[[str], Template]


def prepare(blob: bytes) -> Callable[[], Callable[[Mapping[str, Any], bytes], Any]]:
    """See `child`: nothing is prepared but jinja2; each worker keeps what it has compiled."""
    made = environment()

    def make() -> Callable[[Mapping[str, Any], bytes], Any]:
        compiled = lru_cache(maxsize=8)(made.from_string)
        return lambda job, blob: (answer(compiled, job), b"")

    return make


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


def answer(compiled: Compiler, job: Mapping[str, Any]) -> dict[str, str]:
    """The rendered text, or where the template is not one."""
    try:
        return {"text": render(compiled(job["source"]), job)}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}


def render(template: Template, job: Mapping[str, Any]) -> str:
    """The text that a template writes; TemplateError beyond the job's limit."""
    pieces, size = [], 0
    for piece in template.generate(job["variables"]):
        pieces.append(piece)
        size += len(piece)
        if size > job["limit"]:
            raise TemplateError(f"writes more than {job['limit']} characters")
    return "".join(pieces)
