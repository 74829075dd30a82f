"""``/healthz`` and ``/readyz``: open to probes, and cheap."""

from __future__ import annotations

from fastapi import APIRouter

from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import HealthOut
from ppd_serve.api.services import ServicesDep
from ppd_serve.errors import Unavailable

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=documented())
async def healthz() -> HealthOut:
    """This process answers."""
    return HealthOut()


@router.get("/readyz", responses=documented())
async def readyz(services: ServicesDep) -> HealthOut:
    """Every part can do its work; 503 names those that can't."""
    missing = await services.status.missing()
    if missing:
        raise Unavailable("; ".join(f"{part}: {why}" for part, why in missing.items()))
    return HealthOut()
