"""The process that runs generated code, and calls what it defines when its judge asks.

It holds the program and nothing else: neither the tests nor what they expect. Also run as a
script (`answer.py DESCRIPTOR MEMORY SECONDS`), with nothing but the standard library.
"""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

if __package__:
    from llamaseek.workers.channel import Channel, Closed
    from llamaseek.workers.plain import decode, encode
else:  # as a script it has only this folder
    sys.path.insert(0, __file__.rpartition("/")[0])
    from channel import Channel, Closed  # type: ignore[import-not-found, no-redef]
    from plain import decode, encode  # type: ignore[import-not-found, no-redef]

FILE = 1 << 20  # bytes of the largest file
DESCRIPTORS = 64
LARGEST = 4 << 20  # bytes of a message


def limit(memory: int, seconds: int) -> None:
    """No more address space, processor time, files and processes than allowed; for good."""
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":
        bounds[resource.RLIMIT_AS] = memory
    for kind, value in bounds.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def run(descriptor: int) -> None:
    """Run the program that comes over a socket, then do what its judge asks until that closes."""
    channel = Channel(socket.socket(fileno=descriptor), LARGEST)
    try:
        program = channel.receive().value["program"]
        answers = Answers(channel)
        module = sys.modules["__main__"] = ModuleType("__main__")
        try:
            exec(compile(program, "answer", "exec"), module.__dict__)
            found: dict[str, Any] = {"names": answers.describe(dict(module.__dict__))}
        except BaseException as error:
            found = {"raised": type(error).__name__}
        channel.send(found)
        answers.serve()
    except Closed:
        return


class Answers:
    """What the judge may ask of the objects of a program."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.objects: list[Any] = []  # never freed, so that an identity stands for one object
        self.numbers: dict[int, int] = {}

    def describe(self, namespace: Mapping[str, Any]) -> dict[str, Any]:
        """The program's names: plain values, modules, kinds of exceptions, other objects."""
        found: dict[str, Any] = {}
        for name, value in namespace.items():
            if name.startswith("__"):
                continue
            if isinstance(value, ModuleType):
                found[name] = {"module": value.__name__}
            elif isinstance(value, type) and issubclass(value, BaseException):
                found[name] = {"exception": lineage(value)}
            else:
                found[name] = {"value": encode(value, self.refer)}
        return found

    def refer(self, value: Any) -> dict[str, Any]:
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return {"object": number}

    def resolve(self, given: Mapping[str, Any]) -> Any:
        if "callback" in given:
            number = given["callback"]
            return lambda *args, **kwargs: self.call_back(number, args, kwargs)
        return self.objects[given["object"]]

    def serve(self) -> Any:
        """Do what is asked, until what a callback returned comes, or the end."""
        while True:
            asked = self.channel.receive().value
            if "return" in asked:
                return decode(asked["return"], self.resolve)
            if "throw" in asked:
                raise RuntimeError("the judge's function failed")
            try:
                reply = {"value": encode(self.perform(asked), self.refer)}
            except Closed:
                raise
            except BaseException as error:
                reply = {"raise": lineage(type(error)), "message": text_of(error)}
            self.channel.send(reply)

    def perform(self, asked: Mapping[str, Any]) -> Any:
        """A call, an attribute, or a special method such as `__len__`."""
        target = self.objects[asked["target"]]
        args = decode(asked.get("args", []), self.resolve)
        if "get" in asked:
            return getattr(target, asked["get"])
        if "set" in asked:
            return setattr(target, asked["set"], *args)
        if "special" in asked:
            method = getattr(type(target), asked["special"], None)
            found = NotImplemented if method is None else method(target, *args)
            if found is NotImplemented:
                raise TypeError(f"{asked['special']} is not implemented")
            return found
        return target(*args, **decode(asked["kwargs"], self.resolve))

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Have the judge call one of its own functions."""
        given = {"args": encode(list(args), self.refer), "kwargs": encode(kwargs, self.refer)}
        self.channel.send({"callback": number, **given})
        return self.serve()


def lineage(kind: type) -> list[str]:
    """The names of a class and of those that it comes from."""
    return [each.__name__ for each in kind.__mro__]


def text_of(error: BaseException) -> str:
    """An error's message; whatever goes wrong in making it is no message."""
    try:
        return str(error)[:1000]
    except BaseException:
        return ""


if __name__ == "__main__":
    limit(int(sys.argv[2]), int(sys.argv[3]))
    run(int(sys.argv[1]))
