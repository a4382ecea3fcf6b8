"""A worker's handler that compares answers to problems of MATH: comparing can take for ever.

Sympy and math-verify limit themselves by alarms, which threads do not get and towers of powers
outlast. The comparison is lm-eval's own, of its file `minerva_math/utils.py`.

    {"metric": "exact_match", "gold", "answer"}   whether two normalized answers are equivalent
    {"metric": "math_verify", "gold", "answer"}   whether an answer's text has the solution's value

Both replies are `{"equal"}`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

Reply = tuple[dict[str, Any], bytes]
UTILITIES = "tasks/minerva_math/utils.py"


def prepare(blob: bytes) -> Callable[[], Callable[[Mapping[str, Any], bytes], Reply]]:
    """See `child`."""
    utilities = _load()
    return lambda: lambda job, blob: ({"equal": _equal(utilities, job)}, b"")


def _load() -> ModuleType:
    """lm-eval's file, without the rest of lm-eval, which imports PyTorch."""
    package = importlib.util.find_spec("lm_eval")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / UTILITIES
    spec = importlib.util.spec_from_file_location("minerva_math_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _equal(utilities: ModuleType, job: Mapping[str, Any]) -> bool:
    gold, answer = job["gold"], job["answer"]
    if job["metric"] == "exact_match":
        return bool(utilities.is_equiv(answer, gold))
    return bool(utilities.verify(gold=utilities.parse(gold), target=utilities.parse(answer)))
