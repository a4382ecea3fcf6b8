"""Packages that can be called: `llamaseek.train` is a room, and the function of that name.

Importing anything of a package makes the package an attribute of `llamaseek`, in place of the
function in `llamaseek.api`. So that `llamaseek.train(...)` works whatever was imported before, the
package itself passes calls on.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that calls the function of its own name in `llamaseek.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the function."""
        return getattr(import_module("llamaseek.api"), self.__name__.rpartition(".")[2])(
            *args, **kwargs
        )


def make_callable(package: str) -> None:
    """Let an imported package be called."""
    sys.modules[package].__class__ = CallablePackage
