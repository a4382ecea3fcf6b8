"""`/health`, `/ready`, `/metrics`: for monitoring."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from llamaseek.engine.background import BackgroundEngine
from llamaseek.serve.service import Service

router = APIRouter()


def engines(service: Service) -> list[BackgroundEngine]:
    """The model's, and the guard's if there is one."""
    guard = [] if service.guard is None else [service.guard.background]
    return [service.background, *guard]


def failing(service: Service) -> bool:
    """Whether an engine is broken or its forwards fail."""
    return any(
        each.fault is not None or each.engine.statistics.failing is not None
        for each in engines(service)
    )


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the engine works; 503 once it is broken, or while its forwards fail."""
    service: Service = request.app.state.service
    if failing(service):
        return JSONResponse({"status": "failing"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are taken; 503 when a queue is full, at shutdown, or without health."""
    service: Service = request.app.state.service
    why = None
    if service.draining:
        why = "draining"
    elif failing(service):
        why = "failing"
    elif any(each.in_flight >= each.most for each in engines(service)):
        why = "full"
    return JSONResponse({"status": why or "ready"}, 503 if why else 200)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
