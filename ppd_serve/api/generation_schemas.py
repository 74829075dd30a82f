"""What goes over the wire about drawings: what is asked for, what was drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from ppd_serve.api.schemas import LIMITS, Id, Problem, Prompt, Request, Text, Version


def _from_to(shares: list[float]) -> list[float]:
    if shares[0] > shares[1]:
        raise PydanticCustomError("interval", "Should be two shares, from and to")
    return shares


Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2), AfterValidator(_from_to)]


class UserWeight(Request):
    """A user, or the taste code of one. ``version``: of the user's taste, the newest if it is left
    out; 409 where that version is not kept."""

    user_id: Id | None = None
    taste_code: Id | None = None
    weight: Annotated[float, Field(ge=LIMITS.weight[0], le=LIMITS.weight[1])] = 1.0
    version: Version | None = None

    @model_validator(mode="after")
    def _one(self) -> UserWeight:
        if (self.user_id is None) == (self.taste_code is None):
            raise PydanticCustomError("user", "Give either user_id or taste_code")
        if self.taste_code is not None and self.version is not None:
            raise PydanticCustomError("version", "A taste code is of one version")
        return self


class GenerateIn(Request):
    """What is left out is the release's default. ``guidance_interval``: from and to, as shares of
    the steps; outside it a picture is not guided, which takes half the work."""

    prompt: Prompt
    user_id: Id | None = None
    users: Annotated[list[UserWeight], Field(max_length=LIMITS.users)] | None = None
    negative_prompt: Text = ""
    n: Annotated[int, Field(ge=1, le=LIMITS.n)] = 1
    width: Annotated[int, Field(ge=1, le=2**16)] | None = None
    height: Annotated[int, Field(ge=1, le=2**16)] | None = None
    steps: Annotated[int, Field(ge=1, le=LIMITS.steps)] | None = None
    guidance_scale: (
        Annotated[float, Field(ge=LIMITS.guidance_scale[0], le=LIMITS.guidance_scale[1])] | None
    ) = None
    guidance_interval: Interval | None = None
    preference_scale: (
        Annotated[float, Field(ge=LIMITS.preference_scale[0], le=LIMITS.preference_scale[1])] | None
    ) = None
    seed: Annotated[int, Field(ge=0, le=LIMITS.seed)] | None = None
    sampler: Annotated[str, StringConstraints(max_length=64)] | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False

    @model_validator(mode="after")
    def _one(self) -> GenerateIn:
        if self.user_id is not None and self.users is not None:
            raise PydanticCustomError("users", "Give either user_id or users")
        return self

    @property
    def wanted(self) -> list[UserWeight]:
        """The users however they were named; empty for none."""
        if self.user_id is not None:
            return [UserWeight(user_id=self.user_id)]
        return self.users or []


def _is_none(value: object) -> bool:
    return value is None


class GeneratedImage(BaseModel):
    """``url`` is absolute, signed and good for an hour."""

    image_id: str
    seed: int
    b64_json: str | None = Field(None, exclude_if=_is_none)
    url: str | None = Field(None, exclude_if=_is_none)


class UserUsed(BaseModel):
    """``personalized`` is false for a user without an embedding: the base picture. Who was asked
    for by a taste code is told by the end of that code alone."""

    user_id: str | None = Field(None, exclude_if=_is_none)
    taste_code: str | None = Field(None, exclude_if=_is_none)
    weight: float
    personalized: bool
    version: int | None
    pairs_used: int


class GenerationOut(BaseModel):
    """``timing``: seconds by stage."""

    id: str
    created: int
    release: str
    images: list[GeneratedImage]
    users: list[UserUsed]
    timing: dict[str, float]


class GenerationRecordOut(BaseModel):
    """How far a generation is; ``images`` are those that are finished, ``error`` why it ended."""

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    created: int
    release: str
    images: list[GeneratedImage]
    users: list[UserUsed]
    timing: dict[str, float]
    error: Problem | None
