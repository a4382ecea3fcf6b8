"""The process that runs generated code. Run as a script; it imports nothing of ours."""

from __future__ import annotations

import ctypes
import resource
import sys

MEMORY, FILE = 1 << 29, 1 << 20  # bytes of address space, of the largest file
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # clone(2)'s flags


def confine(seconds: int) -> None:
    """Give up the network, then set the limits."""
    ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK)  # refused by some kernels, and then nothing
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def main() -> None:
    """Read code, confine itself, run it."""
    source = sys.stdin.read()
    code = compile(source, "answer", "exec")
    confine(int(sys.argv[1]))
    exec(code, {"__name__": "__main__"})


if __name__ == "__main__":
    main()
