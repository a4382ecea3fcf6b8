"""The lock that a run holds on its folder, from reading its data to its end."""

from __future__ import annotations

import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamaseek.errors import UserError

NAME = ".run-lock"
_held: dict[Path, int] = {}  # folders that this process holds → descriptors of their lock's file


def hold(folder: Path) -> None:
    """Take a run folder for this process until `release`, or its end; makes the folder.

    Raises `UserError`, naming the process, where another one has it.
    """
    place = folder.resolve()
    if place in _held:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        _held[place] = _locked(folder, place / NAME)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def release(folder: Path) -> None:
    """Give back what `hold` took; a folder that is still empty is removed."""
    handle = _held.pop(folder.resolve(), None)
    if handle is not None:
        with suppress(OSError):
            (folder / NAME).unlink()
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked child may have the descriptor too
        os.close(handle)
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def released_on_error(folder: Path) -> Iterator[None]:
    """`release` where the block fails."""
    try:
        yield
    except BaseException:
        release(folder)
        raise


def check_free(folder: Path) -> None:
    """UserError, naming the process, where another one holds a run folder."""
    if folder.resolve() in _held or not (folder / NAME).is_file():
        return
    with suppress(OSError), (folder / NAME).open("r+") as file:
        if not _lock(file.fileno()):
            raise _taken(folder, file.read())


def _locked(folder: Path, path: Path) -> int:
    """A descriptor that holds the lock of the file that is at `path` now."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(handle):
            owner = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            raise _taken(folder, owner)
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            break
        os.close(handle)  # its holder removed it in between
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
    return handle


def _lock(handle: int) -> bool:
    """Whether this descriptor has the lock now; a file system without locks is taken as free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"warning: {NAME}: no lock here ({error.strerror})", file=sys.stderr)
    return True


def _taken(folder: Path, owner: str) -> UserError:
    by = f"by {owner}" if owner else "by another process"
    return UserError(f"{folder}: a run is at work there, {by}; allowed: its end, or another out")
