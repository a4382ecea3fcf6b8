"""A server of a tiny model in a thread of this process, on a free port of the loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.models import CausalLM
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.server import Server, make_server
from llamaseek.serve.service import Service
from llamaseek.text.tokenizer import Tokenizer
from tests.models.shapes import tiny_model
from tests.train.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class Running:
    """A server that runs; `client` asks it."""

    def __init__(self, service: Service, server: Server) -> None:
        port = server.servers[0].sockets[0].getsockname()[1]
        self.service, self.server, self.url = service, server, f"http://127.0.0.1:{port}"
        headers = {}
        if service.options.api_keys:
            headers["Authorization"] = f"Bearer {service.options.api_keys[0].key}"
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """One request with a JSON body; the model's name is filled in."""
        return self.client.post(path, json={"model": self.service.options.name, **body})

    def idle(self, seconds: float = 10) -> bool:
        """Whether the engine comes to rest within that time, with no block in use."""
        engine, end = self.service.engine, time.monotonic() + seconds
        while time.monotonic() < end:
            if not engine.busy and not self.service.background.in_flight and not engine.pool.used:
                return True
            time.sleep(0.01)
        return False


def make_service(
    model: CausalLM | None = None,
    tokenizer: Tokenizer = TOKENIZER,
    options: dict[str, Any] | None = None,
    **engine: Any,
) -> Service:
    """A service of a tiny Llama, unless another model is given."""
    model = model or tiny_model("llama3", vocab_size=tokenizer.vocab_size)
    made = Engine(model, tokenizer, EngineOptions(**engine))
    return Service(made, tokenizer, ServeOptions(port=0, name="tiny", **(options or {})))


def roomy() -> Service:
    """A service whose context holds the definitions of tools."""
    size = TOKENIZER.vocab_size
    return make_service(tiny_model("llama3", vocab_size=size, max_position_embeddings=2048))


@contextmanager
def running(service: Service, wrap: Callable[[Any], Any] | None = None) -> Iterator[Running]:
    """The service behind a port, until the end of the block; `wrap` goes around its app."""
    server = make_server(service)
    if wrap is not None:
        server.config.app = wrap(server.config.app)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    run = Running(service, server)
    try:
        yield run
    finally:
        run.client.close()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
