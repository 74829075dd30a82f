"""``/users/{id}/taste-codes``: a taste to draw with, without whose it is."""

from __future__ import annotations

from fastapi import APIRouter

from ppd_serve.api.auth import Project
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.loop_schemas import TasteCodeIn, TasteCodeOut, TasteCodesOut
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import Id
from ppd_serve.api.services import ServicesDep

router = APIRouter(prefix="/users/{user_id}/taste-codes", tags=["taste codes"])


@router.post("", status_code=201, responses=documented(404, 409))
async def add_taste_code(
    user_id: Id,
    project: Project,
    services: ServicesDep,
    idempotency: IdempotencyDep,
    body: TasteCodeIn | None = None,
) -> TasteCodeOut:
    """A code that stands for one version of the taste in `/generate`, inside the project, until it
    is withdrawn, its version goes or its user is deleted."""
    return await services.taste_codes.add(project, user_id, body or TasteCodeIn(), idempotency)


@router.get("", responses=documented(404))
async def list_taste_codes(user_id: Id, project: Project, services: ServicesDep) -> TasteCodesOut:
    """Those that work, oldest first."""
    return await services.taste_codes.list(project, user_id)


@router.delete("/{code}", status_code=204, responses=documented())
async def delete_taste_code(user_id: Id, code: Id, project: Project, services: ServicesDep) -> None:
    """Withdraw it, and stop what is being drawn with it; also right the second time."""
    await services.taste_codes.delete(project, user_id, code)
