"""`/v1/models`: the names that requests may ask for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from llamaseek.serve.service import Service

router = APIRouter()


@router.get("/v1/models")
@router.get("/v1/models/", include_in_schema=False)
async def models(request: Request) -> dict[str, Any]:
    """All names: the base first, then its adapters."""
    service: Service = request.app.state.service
    return {"object": "list", "data": [entry(service, name) for name in service.models]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them; 404 for another."""
    service: Service = request.app.state.service
    service.adapter(name)
    return entry(service, name)


def entry(service: Service, name: str) -> dict[str, Any]:
    """A model as OpenAI's API lists it, and how long its context is."""
    base = service.options.name
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "llamaseek",
        "root": base,
        "parent": None if name == base else base,
        "max_model_len": service.engine.context,
    }
