"""What goes over the wire in the taste loop: questions, feedback, past versions and taste codes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ppd_serve.api.schemas import Id, Prompt, Request, Version


class QuestionIn(Request):
    """Without a prompt the release's example prompts take turns."""

    prompt: Prompt | None = None


class AnswerIn(Request):
    choice: Literal["left", "right", "neither"]


class FeedbackIn(Request):
    image_id: Id
    liked: bool


class TasteCodeIn(Request):
    """``version``: the newest that has been read, if it is left out."""

    version: Version | None = None


class EmbeddingVersionOut(BaseModel):
    version: int
    pairs_used: int


class EmbeddingVersionsOut(BaseModel):
    """Newest first; ``next`` is the cursor of the next page."""

    embeddings: list[EmbeddingVersionOut]
    next: str | None


class LinkedImage(BaseModel):
    """``url`` is absolute, signed and good for an hour."""

    image_id: str
    url: str


class QuestionOut(BaseModel):
    """Which of two pictures of one prompt does the user prefer?"""

    question_id: str
    prompt: str
    left: LinkedImage
    right: LinkedImage


class FeedbackOut(BaseModel):
    feedback_id: str
    image_id: str
    liked: bool


class TasteCodeOut(BaseModel):
    """``code`` stands for this version of the taste wherever a user is asked for."""

    code: str
    version: int
    created: float


class TasteCodesOut(BaseModel):
    """Oldest first."""

    taste_codes: list[TasteCodeOut]
