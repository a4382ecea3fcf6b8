"""Llama 3 and DeepSeek-V3 from raw text to a model you can talk to.

What `__all__` lists is public, described in docs/api.md, and imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamaseek.api import Run, evaluate, load, plan, train
    from llamaseek.engine.request import Logprob, SamplingParams
    from llamaseek.errors import UserError
    from llamaseek.model import Model
    from llamaseek.recipe.schema import Recipe

__version__ = "0.1.0"
__all__ = [
    "Logprob",
    "Model",
    "Recipe",
    "Run",
    "SamplingParams",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "plan",
    "train",
]

_HOMES = {
    "Logprob": "engine.request",
    "Model": "model",
    "Recipe": "recipe.schema",
    "SamplingParams": "engine.request",
    "UserError": "errors",
}
_ROOMS = ("plan", "train")  # packages that are called like the functions of their names


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"llamaseek.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'llamaseek' has no attribute {name!r}")
    return getattr(import_module(f"llamaseek.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
