"""Plain values as JSON: what the process of generated code and its judge say to each other.

Numbers, texts, bytes, None, and lists, tuples, sets and dicts of such are copied; everything else
is a reference to an object that stays where it is. So nothing that decides a comparison, as
`__eq__` does, ever comes from generated code into the process that compares.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

EXACT = 1 << 53  # JSON's numbers up to here are exact everywhere
SEQUENCES: dict[type[Any], str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}

Refer = Callable[[Any], dict[str, Any]]
Resolve = Callable[[dict[str, Any]], Any]


def encode(value: Any, refer: Refer) -> Any:
    """A value as JSON; `refer` names an object that is not plain, under the key `object`.

    Values of subclasses (a defaultdict, a named tuple) are written as their plain base.
    """
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -EXACT < number < EXACT else {"int": hex(number)}
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, complex):
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        kind = "bytes" if isinstance(value, bytes) else "bytearray"
        return {kind: base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [encode(each, refer) for each in value]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(key, refer), encode(each, refer)] for key, each in pairs]}
    for base, name in SEQUENCES.items():
        if isinstance(value, base):
            items: Iterable[Any] = base.__iter__(value)
            return {name: [encode(each, refer) for each in items]}
    return refer(value)


def decode(value: Any, resolve: Resolve) -> Any:
    """The value that was written; `resolve` finds an object by what `refer` wrote.

    Raises ValueError or TypeError for what `encode` never writes.
    """
    if isinstance(value, list):
        return [decode(each, resolve) for each in value]
    if not isinstance(value, dict):
        return value
    if "object" in value:
        return resolve(value)
    ((kind, given),) = value.items()
    if kind == "dict":
        return {decode(key, resolve): decode(each, resolve) for key, each in given}
    if kind == "complex":
        return complex(*map(float.fromhex, given))
    if kind in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[kind](base64.b64decode(given))
    if kind == "int":
        return int(given, 16)
    if kind == "float":
        return float.fromhex(given)
    make = {name: each for each, name in SEQUENCES.items()}[kind]
    return make(decode(each, resolve) for each in given)
