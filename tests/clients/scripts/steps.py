"""What the scripts of all clients share. Runs in a client's own environment: only Python's library.

Usage of a script: NAME.py URL MODEL KIND, where KIND is `scripted` for a model that calls the tools
it is given and writes JSON where it has to, and `real` for one that knows the capital of France.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL, MODEL, KIND = sys.argv[1:4]
KEY = "none"
QUESTION = "What is the capital of France?"
STORY = "The red fox chased the blue bird."
WEATHER = "rain over Bern"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def step(run: Callable[[], Any]) -> Callable[[], Any]:
    """Run a step of a script, named after its function; say on a line what came of it."""
    real = run.__name__.startswith("real")
    if real == (KIND == "real"):
        try:
            found = run()
            if asyncio.iscoroutine(found):
                found = asyncio.run(found)
            print(json.dumps({"step": run.__name__, "ok": True, "seen": str(found)[:200]}))
        except BaseException as error:
            place = traceback.format_exc().splitlines()[-12:]
            seen = f"{type(error).__name__}: {error}"[:400]
            print(json.dumps({"step": run.__name__, "ok": False, "seen": seen, "where": place}))
        sys.stdout.flush()
    return run


def same(found: Any, wanted: Any) -> Any:
    """What was found; AssertionError if it is something else."""
    assert found == wanted, f"{found!r} is not {wanted!r}"
    return found


def holds(found: str, part: str) -> str:
    """A text that has a part; AssertionError if it has not."""
    assert part in found, f"{found!r} has no {part!r}"
    return found
