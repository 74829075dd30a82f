"""``/users/{id}/questions``: the server shows two pictures, the user says which is better."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ppd_serve.api.auth import Drawing, Project, access
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.loop_schemas import AnswerIn, LinkedImage, QuestionIn, QuestionOut
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import Id, PreferencesOut
from ppd_serve.api.services import ServicesDep

router = APIRouter(prefix="/users/{user_id}/questions", tags=["preferences"])


@router.post("", status_code=201, responses=documented(404, 409, 501))
async def ask_question(
    user_id: Id,
    request: Request,
    caller: Drawing,
    services: ServicesDep,
    idempotency: IdempotencyDep,
    body: QuestionIn | None = None,
) -> QuestionOut:
    """Draw the two pictures whose comparison would tell most of this user's taste, creating the
    user if need be. They expire like other pictures."""
    asked = await services.questions.ask(
        caller.project, user_id, body or QuestionIn(), idempotency, caller.slot
    )

    def linked(image_id: str) -> LinkedImage:
        url = access(request).link(str(request.base_url), caller.project, image_id)
        return LinkedImage(image_id=image_id, url=url)

    return QuestionOut(
        question_id=asked.question_id,
        prompt=asked.prompt,
        left=linked(asked.left),
        right=linked(asked.right),
    )


@router.put("/{question_id}/answer", responses=documented(404, 409, 410))
async def answer_question(
    user_id: Id, question_id: Id, body: AnswerIn, project: Project, services: ServicesDep
) -> PreferencesOut:
    """The answer becomes a pair like any other; ``neither`` makes none. Also right the second time;
    409 for another answer, 410 when the pictures have expired."""
    return await services.questions.answer(project, user_id, question_id, body.choice)
