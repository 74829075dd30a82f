"""``/users``: who is known, and what their taste looks like."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from ppd_serve.api.auth import Project
from ppd_serve.api.loop_schemas import EmbeddingVersionsOut
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import LIMITS, Cursor, EmbeddingOut, Id, NeighborsOut, UserOut, Version
from ppd_serve.api.services import ServicesDep

router = APIRouter(prefix="/users/{user_id}", tags=["users"])


@router.put(
    "",
    status_code=201,
    responses={200: {"model": UserOut, "description": "It was there"}, **documented()},
)
async def put_user(
    user_id: Id, project: Project, services: ServicesDep, response: Response
) -> UserOut:
    """Create a user; idempotent."""
    user, created = await services.users.put(project, user_id)
    response.status_code = 201 if created else 200
    return user


@router.get("", responses=documented(404))
async def get_user(user_id: Id, project: Project, services: ServicesDep) -> UserOut:
    """What is known about a user."""
    return await services.users.get(project, user_id)


@router.delete("", status_code=204, responses=documented())
async def delete_user(user_id: Id, project: Project, services: ServicesDep) -> None:
    """Forget a user entirely; also right the second time."""
    await services.users.delete(project, user_id)


@router.get("/embedding", responses=documented(404))
async def get_embedding(
    user_id: Id,
    project: Project,
    services: ServicesDep,
    version: Annotated[Version | None, Query()] = None,
) -> EmbeddingOut:
    """The preference embedding of a version, or the newest."""
    return await services.users.embedding(project, user_id, version)


@router.get("/embeddings", responses=documented(404))
async def list_embeddings(
    user_id: Id,
    project: Project,
    services: ServicesDep,
    cursor: Annotated[Cursor | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 50,
) -> EmbeddingVersionsOut:
    """The versions of which there is an embedding, newest first. A version goes when a pair that it
    has read is deleted."""
    return await services.users.embeddings(project, user_id, cursor, limit)


@router.get("/neighbors", responses=documented(404))
async def get_neighbors(
    user_id: Id,
    project: Project,
    services: ServicesDep,
    k: Annotated[int, Query(ge=1, le=LIMITS.neighbors)] = 10,
) -> NeighborsOut:
    """The users nearest in taste, nearest first."""
    return await services.users.neighbors(project, user_id, k)
