"""``/users/{id}/preferences``: the choices a taste is read from."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ppd_serve.api.auth import Project
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import LIMITS, Cursor, Id, PairsOut, PreferencesIn, PreferencesOut
from ppd_serve.api.services import ServicesDep

router = APIRouter(prefix="/users/{user_id}/preferences", tags=["preferences"])


@router.post("", status_code=201, responses=documented(404, 409))
async def add_preferences(
    user_id: Id,
    body: PreferencesIn,
    project: Project,
    services: ServicesDep,
    idempotency: IdempotencyDep,
) -> PreferencesOut:
    """Add choices, creating the user if need be. 201 means committed; ``pending`` means that the
    encoder has yet to read them."""
    return await services.preferences.add(project, user_id, body, idempotency)


@router.get("", responses=documented(404))
async def list_preferences(
    user_id: Id,
    project: Project,
    services: ServicesDep,
    cursor: Annotated[Cursor | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 50,
) -> PairsOut:
    """A user's choices, oldest first."""
    return await services.preferences.page(project, user_id, cursor, limit)


@router.delete("/{pair_id}", status_code=204, responses=documented())
async def delete_preference(
    user_id: Id, pair_id: Id, project: Project, services: ServicesDep
) -> None:
    """Take one choice back; also right the second time."""
    await services.preferences.delete(project, user_id, pair_id)
