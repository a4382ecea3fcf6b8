"""The web application: routes, errors, the gate before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from llamaseek import __version__
from llamaseek.serve import chat, completions, embeddings, errors, health, models, tokens
from llamaseek.serve.gate import OPEN, Gate
from llamaseek.serve.service import Service

ROUTERS = (models, completions, chat, embeddings, tokens, health)


def create_app(service: Service) -> FastAPI:
    """The app that serves a model; its engine's thread lives as long as the app does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.background.start()
        try:
            yield
        finally:
            service.background.stop()

    app = FastAPI(
        title="llamaseek", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    errors.install(app)
    for room in ROUTERS:
        app.include_router(room.router)
    open_paths = OPEN
    if service.options.page is not None:
        from fastapi.staticfiles import StaticFiles

        folder = service.options.page
        files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
        open_paths = OPEN | {"/"} | {f"/{file.as_posix()}" for file in files}
        app.mount("/", StaticFiles(directory=folder, html=True))
    app.add_middleware(Gate, service=service, open_paths=open_paths)
    return app
