"""``/metrics``: what Prometheus scrapes.

It tells how much is drawn here, for all projects together, so it wants a key with a scope of its
own where there are keys, and loopback where there are none.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ppd_serve.api.auth import MetricsAllowed
from ppd_serve.api.problems import documented
from ppd_serve.api.services import ServicesDep

router = APIRouter(tags=["health"])

_TEXT = {"text/plain": {"schema": {"type": "string"}}}


@router.get(
    "/metrics",
    dependencies=[MetricsAllowed],
    response_class=Response,
    responses={200: {"content": _TEXT, "description": "Prometheus' text format"}, **documented()},
)
async def metrics(services: ServicesDep) -> Response:
    """Requests, drawings, the engine's queue and steps, caches and the index, in numbers."""
    return Response(generate_latest(services.meters.registry), media_type=CONTENT_TYPE_LATEST)
