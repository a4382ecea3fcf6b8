"""A client for streams over plain sockets, so that measuring costs as little as it can."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

from bench.serving.workload import Chat, Timing


async def ask(port: int, chat: Chat, moment: float, start: float) -> Timing:
    """Send one chat at its moment; time its events."""
    await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
    asked = {
        "model": "bench",
        "prompt": chat.prompt,
        "max_tokens": chat.answer,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    body = json.dumps(asked).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise ConnectionError(f"{status!r} {await reader.read(2000)!r}")
    first = last = 0.0
    ended = False
    async for line in reader:
        if line.startswith(b"data: {"):
            last = time.perf_counter()
            first = first or last
        ended = ended or line.startswith(b"data: [DONE]")
    writer.close()
    if not ended:
        raise ConnectionError("a stream broke off")
    return Timing(first - began, last - began, last - start)


async def ask_all(port: int, chats: Sequence[Chat], moments: Sequence[float]) -> list[Timing]:
    """All chats, each at its moment."""
    start = time.perf_counter() + 0.05
    asked = (ask(port, chat, at, start) for chat, at in zip(chats, moments, strict=True))
    return list(await asyncio.gather(*asked))
