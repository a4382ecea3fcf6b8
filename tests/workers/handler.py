"""A handler of all that a job can do to its worker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

KEPT: list[bytes] = []


def prepare(blob: bytes) -> Callable[[], Callable[[Mapping[str, Any], bytes], Any]]:
    if blob == b"broken":
        raise ValueError("cannot be prepared")
    return lambda: lambda job, given: do(job, given, blob)


def do(job: Mapping[str, Any], given: bytes, prepared: bytes) -> tuple[dict[str, Any], bytes]:
    kind, amount = job["kind"], job.get("amount", 0)
    if kind == "sleep":
        time.sleep(amount)
    elif kind == "spin":
        while True:
            pass
    elif kind == "allocate":
        KEPT.append(b"x" * amount)
    elif kind == "end":
        os._exit(3)
    elif kind == "abort":
        os.abort()
    elif kind == "raise":
        raise ValueError("a mistake\nof two lines")
    elif kind == "fork":
        child = os.fork()
        if not child:
            time.sleep(60)
        return {"pid": child}, b""
    elif kind == "large":
        return {}, b"x" * amount
    elif kind == "noise":
        os.write(3, b"\xff" * 100)
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b"\x00\x00\x00\x05\x00\x00\x00\x00{{{{{")
            except OSError:
                continue
    return {"pid": os.getpid(), "echo": job.get("text")}, given + prepared
