"""``/users/{id}/feedback``: whether a user likes a picture."""

from __future__ import annotations

from fastapi import APIRouter

from ppd_serve.api.auth import Project
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.loop_schemas import FeedbackIn, FeedbackOut
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import Id
from ppd_serve.api.services import ServicesDep

router = APIRouter(prefix="/users/{user_id}/feedback", tags=["preferences"])


@router.post("", status_code=201, responses=documented(404, 409))
async def give_feedback(
    user_id: Id,
    body: FeedbackIn,
    project: Project,
    services: ServicesDep,
    idempotency: IdempotencyDep,
) -> FeedbackOut:
    """Of a picture that was drawn here, for this user or for nobody in particular; creates the user
    if need be. A change of mind takes the place of what was said before. The picture is kept."""
    return await services.feedback.put(project, user_id, body, idempotency)


@router.delete("/{feedback_id}", status_code=204, responses=documented())
async def delete_feedback(
    user_id: Id, feedback_id: Id, project: Project, services: ServicesDep
) -> None:
    """Take it back; also right the second time."""
    await services.feedback.delete(project, user_id, feedback_id)
