"""The web application: routes, errors, the gate before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from llamaseek import __version__
from llamaseek.serve.gate import OPEN, Gate
from llamaseek.serve.routes import about as health
from llamaseek.serve.routes import (
    chat,
    chat_page,
    completions,
    embeddings,
    examples,
    internals,
    messages,
    models,
    ollama,
    responses,
    score,
    tokens,
)
from llamaseek.serve.service import Service
from llamaseek.serve.wire import errors

ROUTERS = (
    models,
    completions,
    chat,
    responses,
    messages,
    embeddings,
    score,
    ollama,
    tokens,
    examples,
    internals,
    health,
    chat_page,
)


def create_app(service: Service) -> FastAPI:
    """The app that serves a model; its engine's thread lives as long as the app does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engines = [service.background]
        if service.guard is not None:
            engines.append(service.guard.background)
        for engine in engines:
            engine.start()
        try:
            yield
        finally:
            for engine in engines:
                engine.stop()

    app = FastAPI(
        title="llamaseek", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    errors.install(app)
    for room in ROUTERS:
        app.include_router(room.router)
    app.add_middleware(Gate, service=service, open_paths=OPEN | chat_page.PATHS)
    if service.options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app
