"""``/releases``: what draws here, and within which bounds."""

from __future__ import annotations

from fastapi import APIRouter

from ppd_serve.api.auth import Common
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import ReleasesOut
from ppd_serve.api.services import ServicesDep

router = APIRouter(tags=["releases"])


@router.get("/releases", responses=documented())
async def get_releases(project: Common, services: ServicesDep) -> ReleasesOut:
    """The release in use, its sizes, samplers and limits."""
    return await services.status.releases()
