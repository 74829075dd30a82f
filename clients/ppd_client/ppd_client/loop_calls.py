"""``calls`` of the taste loop: questions, feedback, past versions and taste codes."""

from __future__ import annotations

from typing import Literal
from uuid import uuid4

from .call import Call, checked_id, given, nothing, typed, user_path
from .models import (
    EmbeddingsPage,
    Feedback,
    ImageRef,
    PreferencesAdded,
    Question,
    TasteCode,
    TasteCodes,
)


def ask(
    user_id: str, prompt: str | None = None, *, idempotency_key: str | None = None
) -> Call[Question]:
    """Have the two pictures drawn whose comparison would tell most of a user's taste; creates the
    user. Show them, then ``answer``. Without a prompt the server takes one of its examples.

    idempotency_key: made afresh for each call, so that a retry draws nothing twice.
    """
    return Call(
        "POST",
        user_path(user_id, "questions"),
        typed(Question),
        json=given(prompt=prompt),
        headers={"Idempotency-Key": idempotency_key or uuid4().hex},
    )


def answer(
    user_id: str, question: Question | str, choice: Literal["left", "right", "neither"]
) -> Call[PreferencesAdded]:
    """Which picture the user preferred; ``neither`` adds no pair. When it returns, it is committed.
    Raises Conflict if it was answered otherwise before."""
    question_id = question if isinstance(question, str) else question.question_id
    path = user_path(user_id, "questions", checked_id("question_id", question_id), "answer")
    return Call("PUT", path, typed(PreferencesAdded), json={"choice": choice})


def give_feedback(
    user_id: str, image: ImageRef | str, liked: bool, *, idempotency_key: str | None = None
) -> Call[Feedback]:
    """Whether a user likes a picture that the server drew; a change of mind takes the place of what
    was said before. Creates the user. The server keeps the picture."""
    image_id = image if isinstance(image, str) else image.image_id
    return Call(
        "POST",
        user_path(user_id, "feedback"),
        typed(Feedback),
        json={"image_id": image_id, "liked": liked},
        headers={"Idempotency-Key": idempotency_key or uuid4().hex},
    )


def delete_feedback(user_id: str, feedback: Feedback | str) -> Call[None]:
    """Take it back. Also right the second time."""
    feedback_id = feedback if isinstance(feedback, str) else feedback.feedback_id
    path = user_path(user_id, "feedback", checked_id("feedback_id", feedback_id))
    return Call("DELETE", path, nothing)


def embeddings_page(
    user_id: str, cursor: str | None = None, limit: int | None = None
) -> Call[EmbeddingsPage]:
    """One page of the versions of a user's taste, newest first. Raises NotFound."""
    params = given(cursor=cursor, limit=limit)
    return Call("GET", user_path(user_id, "embeddings"), typed(EmbeddingsPage), params=params)


def add_taste_code(
    user_id: str, version: int | None = None, *, idempotency_key: str | None = None
) -> Call[TasteCode]:
    """A code that draws to a version of a user's taste (the newest) without saying whose it is."""
    return Call(
        "POST",
        user_path(user_id, "taste-codes"),
        typed(TasteCode),
        json=given(version=version),
        headers={"Idempotency-Key": idempotency_key or uuid4().hex},
    )


def taste_codes(user_id: str) -> Call[list[TasteCode]]:
    """A user's codes that work, oldest first."""
    read = typed(TasteCodes)
    return Call("GET", user_path(user_id, "taste-codes"), lambda answer: read(answer).taste_codes)


def delete_taste_code(user_id: str, code: TasteCode | str) -> Call[None]:
    """Withdraw a code; what is being drawn with it stops. Also right the second time."""
    name = code if isinstance(code, str) else code.code
    return Call("DELETE", user_path(user_id, "taste-codes", checked_id("code", name)), nothing)
