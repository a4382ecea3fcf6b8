"""The servers under test, each in a process of its own, asked one after another."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from bench.common import installed
from bench.serving.client import ask_all
from bench.serving.folders import CONTEXT
from bench.serving.workload import CHATS, Chat, Timing

NAMES = ("ours", "llama.cpp", "transformers")
STARTUP = 180  # seconds


class Contender(Protocol):
    """Something that answers chats."""

    def run(self, chats: Sequence[Chat], moments: Sequence[float]) -> list[Timing]:
        """All chats, each at its moment."""
        ...


class HttpServer:
    """A server that streams completions."""

    def __init__(self, port: int) -> None:
        self.port = port

    def run(self, chats: Sequence[Chat], moments: Sequence[float]) -> list[Timing]:
        """See `Contender.run`."""
        return asyncio.run(ask_all(self.port, chats, moments))


class Worker:
    """transformers' continuous batching, asked over a pipe; no HTTP stands in its way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, chats: Sequence[Chat], moments: Sequence[float]) -> list[Timing]:
        """See `Contender.run`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = [[chat.prompt, chat.answer, at] for chat, at in zip(chats, moments, strict=True)]
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("TIMES "):
                return [Timing(*each) for each in json.loads(line.removeprefix("TIMES "))]
        raise ConnectionError("the worker ended")


def skipped(name: str) -> str | None:
    """Why a contender cannot be asked here, or None."""
    if name == "transformers" and installed("transformers") is None:
        return "transformers (not installed)"
    if name == "llama.cpp" and not os.environ.get("LLAMA_SERVER"):
        return "llama.cpp (LLAMA_SERVER names no llama-server)"
    if name == "llama.cpp" and not os.environ.get("LLAMA_CPP_SOURCE"):
        return "llama.cpp (LLAMA_CPP_SOURCE names no source with its converter)"
    return None


@contextmanager
def started(name: str, folder: Path, limit: float) -> Iterator[Contender]:
    """A contender, ready to answer; it ends with the block, or after `limit` seconds, which its
    callers see as `ConnectionError`."""
    port, threads = free_port(), str(len(os.sched_getaffinity(0)))
    model = str(folder / "model")
    commands = {
        "ours": [sys.executable, "-m", "llamaseek", "serve", model, "--name", "bench", "--dtype",
                 "bf16", "--port", str(port), "--max-num-seqs", str(CHATS)],
        "llama.cpp": [os.environ.get("LLAMA_SERVER", ""), "-m", str(folder / "model.gguf"),
                      "--port", str(port), "-np", str(CHATS), "-c", str(CONTEXT * CHATS // 2),
                      "--kv-unified", "-t", threads, "-tb", threads, "--no-webui", "-fa", "auto"],
        "transformers": [sys.executable, "-m", "bench.serving.worker", model],
    }  # fmt: skip
    pipe = subprocess.PIPE if name == "transformers" else subprocess.DEVNULL
    with (
        open(folder / f"{name}.log", "w") as log,
        subprocess.Popen(
            commands[name], stdin=pipe, stdout=pipe, stderr=log, text=True, cwd=_root()
        ) as process,
    ):
        bound = threading.Timer(limit, process.kill)
        bound.start()
        try:
            if name == "transformers":
                yield Worker(process)
            else:
                _wait(process, port, folder / f"{name}.log")
                yield HttpServer(port)
        finally:
            bound.cancel()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _wait(process: subprocess.Popen[str], port: int, log: Path) -> None:
    end = time.monotonic() + STARTUP
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise ConnectionError(f"did not start:\n{log.read_text()[-2000:]}")
