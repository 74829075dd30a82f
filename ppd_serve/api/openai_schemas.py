"""OpenAI's shapes of pictures and models, as far as they mean something here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from ppd_serve.api.schemas import LIMITS, Id, Prompt, Request

Partial = Annotated[int, Field(ge=0, le=3)]


class OpenAIImagesIn(Request):
    """``user`` may be anybody; ``user_id``, which is ours, must be known. What says nothing to our
    models (quality, style, moderation, compression) is accepted, whatever it is."""

    prompt: Prompt
    model: Annotated[str, StringConstraints(max_length=256)] | None = None
    n: Annotated[int, Field(ge=1, le=LIMITS.n)] | None = None
    size: (
        Annotated[str, StringConstraints(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")] | None
    ) = None
    quality: Annotated[str, StringConstraints(max_length=64)] | None = None
    style: Annotated[str, StringConstraints(max_length=64)] | None = None
    moderation: Annotated[str, StringConstraints(max_length=64)] | None = None
    background: Literal["opaque", "auto"] | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    user: Annotated[str, StringConstraints(max_length=LIMITS.prompt)] | None = None
    user_id: Id | None = None
    stream: bool | None = None
    partial_images: Partial | None = None

    @model_validator(mode="after")
    def _together(self) -> OpenAIImagesIn:
        if self.response_format == "url" and self.output_format not in (None, "png"):
            raise PydanticCustomError("format", "A url leads to the PNG: ask for b64_json")
        if self.response_format == "url" and self.stream:
            raise PydanticCustomError("format", "A stream carries b64_json")
        return self


class OpenAIImage(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: None = None


class TokenDetails(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Nothing is metered by tokens here."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class OpenAIImagesOut(BaseModel):
    created: int
    data: list[OpenAIImage]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "webp", "jpeg"]
    size: str
    usage: Usage = Usage()


class _StreamedImage(BaseModel):
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: Literal["png", "webp", "jpeg"]
    quality: Literal["auto"] = "auto"
    size: str


class PartialImageEvent(_StreamedImage):
    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int


class CompletedEvent(_StreamedImage):
    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage = Usage()


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "ppd-serve"


class OpenAIModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """What these routes answer with on every status that is no success."""

    error: OpenAIErrorDetails
