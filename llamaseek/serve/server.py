"""Runs the app in uvicorn, with a graceful shutdown.

The first SIGTERM or SIGINT: no new connections, `/ready` says so, answers under way go on for
`drain` seconds; what is then left ends with an error event. A second one ends all at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from llamaseek.errors import UserError
from llamaseek.runtime.world import is_first_rank
from llamaseek.serve.app import create_app
from llamaseek.serve.hosts import is_loopback
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import Service

HEADER_BYTES = 65_536
WHY = "the server is shutting down"
LATE = 0.5  # seconds after a stop signal, and again, that late masks of grammars are given up
GRACE = 5  # seconds that connections may take to end after the answers have


class Server(uvicorn.Server):
    """uvicorn's server with our signals."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT while serving; afterwards the process exits with code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for listening in (one for server in self.servers for one in server.sockets):
            host, port = listening.getsockname()[:2]
            print(f"serving {self.service.options.name} at http://{host}:{port}", flush=True)

    def _stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
            self.service.background.end_all(WHY)
            return
        self.service.draining = self.should_exit = True
        self.service.compiler.stop()
        loop = asyncio.get_running_loop()
        loop.call_later(self.service.options.drain, self.service.background.end_all, WHY)
        loop.call_later(LATE, self._end_late, loop)

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        """Grammars that take their time do not hold up the end of the server."""
        self.service.background.end_late(WHY)
        loop.call_later(LATE, self._end_late, loop)


def check_address(host: str, port: int) -> None:
    """UserError if nothing can listen there, raised before a model is loaded.

    Only the first rank listens, so the others check nothing.
    """
    if not is_first_rank():
        return

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        (await loop.create_server(asyncio.Protocol, host, port, start_serving=False)).close()

    try:
        asyncio.run(listen())
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}") from None


def make_server(service: Service) -> Server:
    """The server of a service, not started yet."""
    options = service.options
    config = uvicorn.Config(
        create_app(service),
        host=options.host,
        port=options.port,
        access_log=False,
        log_level="warning",
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=int(options.drain) + GRACE,
        http="h11",
        ws="none",
    )
    return Server(config, service)


def warn_of_open_address(options: ServeOptions) -> None:
    """Say on standard error that anybody may use a server that has no key."""
    if not options.api_keys and not is_loopback(options.host):
        print(
            f"warning: --host {options.host} without an API key: whoever can reach this machine "
            "can use the model; set LLAMASEEK_API_KEY",
            file=sys.stderr,
            flush=True,
        )


def settle_memory() -> None:
    """Take all objects made so far out of what the garbage collector looks at.

    Its full collections stop every thread, the event loop's too, for as long as they take: a tenth
    of a second over the modules alone.
    """
    gc.collect()
    gc.freeze()


def serve(service: Service) -> None:
    """Serve until a stop signal; the access log goes to standard error."""
    warn_of_open_address(service.options)
    settle_memory()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("llamaseek.serve").setLevel(logging.INFO)
    asyncio.run(make_server(service).serve())
