"""Messages between a process and its workers: a JSON object with bytes beside it, over a socket.

JSON rather than pickle, because a worker may run hostile input and its replies are then hostile
too: what `receive` returns is plain data of a bounded size, or `Closed` is raised.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

HEADER = struct.Struct(">II")  # bytes of JSON, bytes of the blob
LARGEST = 1 << 28
PIECE = 1 << 18


class Closed(Exception):
    """The other end is gone, or sent something that is not a message."""


class Message(NamedTuple):
    """A JSON object and the bytes that came with it."""

    value: dict[str, Any]
    blob: bytes


class Channel:
    """One end of a connected socket, for one thread or task at a time.

    Every wait is bounded by `seconds` (None waits without limit) and raises TimeoutError.
    """

    def __init__(self, end: socket.socket, largest: int = LARGEST) -> None:
        end.setblocking(False)
        self._socket, self._largest = end, largest
        self._received = bytearray()

    def fileno(self) -> int:
        """The file descriptor, for `select`; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other one reads `Closed`."""
        self._socket.close()

    def send(
        self, value: Mapping[str, Any], blob: bytes = b"", seconds: float | None = None
    ) -> None:
        """Send a message, waiting while the other end does not read."""
        end, left = _deadline(seconds), memoryview(_encode(value, blob))
        while left:
            try:
                left = left[self._socket.send(left[:PIECE]) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, end)
            except OSError as error:
                raise Closed(str(error)) from None

    def receive(self, seconds: float | None = None) -> Message:
        """The next message."""
        end = _deadline(seconds)
        while (found := self.poll()) is None:
            self._wait(select.POLLIN, end)
        return found

    def poll(self) -> Message | None:
        """The next message if it has arrived, without waiting."""
        while (found := self._take()) is None:
            try:
                piece = self._socket.recv(PIECE)
            except BlockingIOError:
                return None
            except OSError as error:
                raise Closed(str(error)) from None
            if not piece:
                raise Closed("the other end was closed")
            self._received += piece
        return found

    async def send_async(
        self, value: Mapping[str, Any], blob: bytes = b"", seconds: float | None = None
    ) -> None:
        """`send` for an event loop."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(self._socket, _encode(value, blob))
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise Closed(str(error)) from None

    async def receive_async(self, seconds: float | None = None) -> Message:
        """`receive` for an event loop."""
        async with asyncio.timeout(seconds):
            while (found := self.poll()) is None:
                await self._readable()
        return found

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        descriptor = self._socket.fileno()
        loop.add_reader(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)

    def _wait(self, event: int, end: float | None) -> None:
        left = None if end is None else max(0.0, end - time.monotonic())
        poller = select.poll()
        poller.register(self._socket, event)
        if not poller.poll(None if left is None else 1000 * left):
            raise TimeoutError

    def _take(self) -> Message | None:
        """The first whole message of what was received; `Closed` for what is none."""
        if len(self._received) < HEADER.size:
            return None
        size, extra = HEADER.unpack_from(self._received)
        if size + extra > self._largest:
            raise Closed(f"a message of {size + extra} bytes is larger than {self._largest}")
        end = HEADER.size + size + extra
        if len(self._received) < end:
            return None
        start = end - extra
        text, blob = self._received[HEADER.size : start], bytes(self._received[start:end])
        del self._received[:end]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Closed(f"a message is not JSON ({type(error).__name__})") from None
        if not isinstance(value, dict):
            raise Closed("a message is not a JSON object")
        return Message(value, blob)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _encode(value: Mapping[str, Any], blob: bytes) -> bytes:
    text = json.dumps(value).encode()
    return HEADER.pack(len(text), len(blob)) + text + blob


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds
