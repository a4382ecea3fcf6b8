"""A program's functions and objects as tests see them, each call carried to the answer's process.

Tests compare plain values only, here. What could let a program decide its own tests is refused:

- comparing its objects with anything but each other, their truth, and `in`;
- attributes and operators of what its functions return. Objects of classes, which are called by
  names that begin with a capital letter, have them; operators then take such objects only.
"""

from __future__ import annotations

import builtins
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from llamaseek.workers.channel import Channel, Closed
from llamaseek.workers.plain import decode, encode

READ = ("len", "getitem", "iter", "next", "str", "repr", "int", "float", "index")
"""Special methods that give a value, of any object."""
USED = ("setitem", "delitem", "enter", "exit")
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "and", "or", "xor",
             "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert")  # fmt: skip
ENDS: dict[str, type[Exception]] = {"next": StopIteration}
"""What ends an iteration: only this method may, since a test's `map` would end early, quietly."""


class NotPlain(TypeError):
    """A test would have let the program's own objects decide."""


class Broken(Exception):
    """The answer's process is gone, late, or says what makes no sense."""


class Connection:
    """The judge's end: asks the answer's process, until `end` of `time.monotonic()`."""

    def __init__(self, channel: Channel, end: float) -> None:
        self._channel, self._end = channel, end
        self._callbacks: list[Callable[..., Any]] = []
        self._exceptions: dict[str, type[Exception]] = {}
        self._classes: set[int] = set()  # objects by names with a capital letter
        self._instances: set[int] = set()
        self.uses = 0

    def namespace(self, names: Mapping[str, Any], entry_point: str | None) -> dict[str, Any]:
        """What the tests find of the program. Its names do not replace built-in functions."""
        found: dict[str, Any] = {}
        for name, given in names.items():
            if hasattr(builtins, name) and name != entry_point:
                continue
            if "module" in given:
                self._add_module(found, name, str(given["module"]))
            elif "exception" in given:
                found[name] = self._exception(list(map(str, given["exception"])))
            else:
                value = found[name] = decode(given["value"], self.resolve)
                if isinstance(value, Remote) and name[:1].isupper():
                    self._classes.add(value._number)
        return found

    def _add_module(self, found: dict[str, Any], name: str, module: str) -> None:
        """The module itself, where the program imported one under its own name."""
        if name == module and name in sys.stdlib_module_names:
            found[name] = import_module(name)

    def ask(self, asked: Mapping[str, Any], special: str = "") -> Any:
        """What comes of a request: its value, or an exception as the program raised it."""
        self.uses += 1
        self._send(asked)
        while True:
            reply = self._receive()
            if "callback" in reply:
                self._send(self._called_back(reply))
            elif "raise" in reply:
                kind = self._exception(list(map(str, reply["raise"])), ENDS.get(special))
                raise kind(str(reply.get("message", "")))
            else:
                return decode(reply["value"], self.resolve)

    def call(self, target: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an object."""
        given = {"args": encode(list(args), self.refer), "kwargs": encode(kwargs, self.refer)}
        found = self.ask({"target": target, **given})
        return self.made(found) if target in self._classes else found

    def made(self, found: Any) -> Any:
        """An object that a class made, or an operator of such objects: it has attributes."""
        if isinstance(found, Remote):
            self._instances.add(found._number)
        return found

    def is_instance(self, number: int) -> bool:
        """Whether an object was made by a class, or is one: then it has attributes."""
        return number in self._instances or number in self._classes

    def refer(self, value: Any) -> dict[str, Any]:
        """An argument that is not plain: an object of the program, or a function of the tests."""
        if isinstance(value, Remote):
            return {"object": value._number}
        if not callable(value):
            raise NotPlain(f"an argument of type {type(value).__name__} cannot be passed")
        self._callbacks.append(value)
        return {"object": None, "callback": len(self._callbacks) - 1}

    def resolve(self, given: Mapping[str, Any]) -> Remote:
        """A reference to an object of the program."""
        if not isinstance(given["object"], int):
            raise ValueError("no object")
        return Remote(self, given["object"])

    def _called_back(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        args, kwargs = (decode(reply[name], self.resolve) for name in ("args", "kwargs"))
        try:
            found = self._callbacks[reply["callback"]](*args, **kwargs)
            return {"return": encode(found, self.refer)}
        except Broken:
            raise
        except Exception:
            return {"throw": True}

    def _exception(
        self, names: list[str], ending: type[Exception] | None = None
    ) -> type[Exception]:
        """The class that tests catch: the program's by its name, else the nearest built-in one."""
        for name in names:
            if ending is not None and name == ending.__name__:
                return ending
            if name in self._exceptions:
                return self._exceptions[name]
            found = getattr(builtins, name, None)
            if isinstance(found, type) and issubclass(found, Exception):
                ends = issubclass(found, (StopIteration, StopAsyncIteration))
                base = RuntimeError if ends else found
                if name == names[0]:
                    return base
                made = type(names[0], (base,), {})
                self._exceptions[names[0]] = made
                return made
        return RuntimeError  # SystemExit and the like would end the tests, not fail them

    def _send(self, value: Mapping[str, Any]) -> None:
        try:
            self._channel.send(value, seconds=self._left())
        except (Closed, TimeoutError) as error:
            raise Broken(_why(error)) from None

    def _receive(self) -> dict[str, Any]:
        try:
            return self._channel.receive(self._left()).value
        except (Closed, TimeoutError) as error:
            raise Broken(_why(error)) from None

    def _left(self) -> float:
        return max(0.0, self._end - time.monotonic())


def _why(error: Exception) -> str:
    return "takes too long" if isinstance(error, TimeoutError) else "ends its process"


class Remote:
    """An object of the program."""

    __slots__ = ("_connection", "_number")

    def __init__(self, connection: Connection, number: int) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._connection.call(self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        self._require_instance(f"attribute {name}")
        return self._connection.ask({"target": self._number, "get": name})

    def __setattr__(self, name: str, value: Any) -> None:
        self._require_instance(f"attribute {name}")
        args = encode([value], self._connection.refer)
        self._connection.ask({"target": self._number, "set": name, "args": args})

    def _require_instance(self, what: str) -> None:
        if not self._connection.is_instance(self._number):
            raise NotPlain(f"{what} of an object that a function returned")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            raise NotPlain("an object is compared with a value")
        return self._number == other._number

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        raise NotPlain("an object is looked up by its hash")

    def __bool__(self) -> bool:
        raise NotPlain("the truth of an object")

    def __contains__(self, value: object) -> bool:
        raise NotPlain("whether an object contains a value")


def _special(name: str) -> Callable[..., Any]:
    def method(self: Remote, *args: Any) -> Any:
        if name not in READ:
            self._require_instance(f"__{name}__")
        if name in OPERATORS and not all(isinstance(each, Remote) for each in args):
            raise NotPlain(f"__{name}__ of an object and a value")
        given = encode(list(args), self._connection.refer)
        asked = {"target": self._number, "special": f"__{name}__", "args": given}
        found = self._connection.ask(asked, name)
        return self._connection.made(found) if name in OPERATORS else found

    return method


for each in (*READ, *USED, *OPERATORS):
    setattr(Remote, f"__{each}__", _special(each))
