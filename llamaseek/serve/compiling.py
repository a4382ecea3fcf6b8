"""Constraints are compiled before a request is accepted, within limits of size, time and memory.

What is too large is refused by its length and depth first. Compiling and the first mask, where
regular expressions do their work, run in a worker process, which is killed beyond its limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from llamaseek.engine.constrain import Constraint, Grammars
from llamaseek.errors import UserError
from llamaseek.serve.options import Limits
from llamaseek.serve.wire.bodies import depth
from llamaseek.serve.wire.errors import ApiError

JSON = re.compile(r"%json\s+")
REPEAT = re.compile(r"\{(\d+)?(,)?(\d+)?\}")
ATOM = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
SHORT = 2000  # characters of a constraint whose size is checked at once; others in a thread
LARGEST_REGEX = 50_000  # characters, once its counted repetitions are written out


class Compiler:
    """Checks constraints for one engine's grammars."""

    def __init__(self, grammars: Grammars, limits: Limits) -> None:
        self._grammars, self._limits = grammars, limits
        self._tasks = set[asyncio.Task[None]]()
        self._stopped = False

    async def check(self, constraint: Constraint, field: str) -> None:
        """UserError for a constraint that cannot be compiled; ApiError 429 where too many are,
        503 where the server is stopping."""
        if len(constraint.source) > SHORT:
            await asyncio.to_thread(self._check_size, constraint, field)
        else:
            self._check_size(constraint, field)
        if len(self._tasks) >= self._limits.compiling:
            message = f"{field}: too many are being compiled; try again later"
            raise ApiError(429, message, field, "queue_full")
        work = self._grammars.check_async(constraint, self._limits.compile_seconds)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        try:
            await task
        except UserError as error:
            raise UserError(f"{field}: {str(error).removeprefix('constraint: ')}") from None
        except asyncio.CancelledError:
            if self._stopped:
                raise ApiError(503, "the server is shutting down", code="unavailable") from None
            raise
        finally:
            self._tasks.discard(task)

    def stop(self) -> None:
        """Compile nothing more: who waits for it gets ApiError 503."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    def _check_size(self, constraint: Constraint, name: str) -> None:
        source, limits = constraint.source, self._limits
        if len(source) > limits.schema_bytes:
            size = f"{len(source)} characters is too large; allowed: {limits.schema_bytes}"
            raise UserError(f"{name}: of {size}")
        alone = constraint.kind == "json_schema"
        patterns = [] if alone else [source]
        for schema in [json.loads(source)] if alone else _schemas(source):
            if depth(schema) > limits.schema_depth:
                raise UserError(f"{name}: is nested deeper than {limits.schema_depth}")
            patterns += _patterns(schema)
        if any(written_out(pattern) > LARGEST_REGEX for pattern in patterns):
            raise UserError(f"{name}: repeats too much; written out it is over {LARGEST_REGEX}")


def _schemas(grammar: str) -> Iterator[Any]:
    """The JSON schemas that a Lark grammar names by `%json`."""
    for found in JSON.finditer(grammar):
        with contextlib.suppress(ValueError, RecursionError):  # the compiler reports what is wrong
            yield json.JSONDecoder().raw_decode(grammar, found.end())[0]


def written_out(pattern: str) -> int:
    """How long a regular expression is once its counted repetitions are written out."""
    sizes, last, at = [0], 0, 0
    while at < len(pattern):
        repeat = REPEAT.match(pattern, at)
        if repeat is not None:
            count = max(int(each) for each in (repeat[1], repeat[3], "1") if each)
            sizes[-1] += last * (count - 1)
            last *= count
            at = repeat.end()
            continue
        atom = ATOM.match(pattern, at)
        assert atom is not None
        at = atom.end()
        if atom[0] == "(":
            sizes.append(0)
        elif atom[0] == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        else:
            last = 1
            sizes[-1] += 1
    return sum(sizes)


def _patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a JSON schema."""
    if isinstance(schema, list):
        for each in schema:
            yield from _patterns(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        if isinstance(schema.get("patternProperties"), dict):
            yield from schema["patternProperties"]
        for each in schema.values():
            yield from _patterns(each)
