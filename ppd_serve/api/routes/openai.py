"""``/v1``: the routes that OpenAI's clients call, in its shapes."""

from __future__ import annotations

import json
import re
import time

from fastapi import APIRouter, Request, Response

from ppd_serve.api import sse
from ppd_serve.api.auth import Common, Drawing
from ppd_serve.api.events import Entry, Failed, Painted, Preview
from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.inlined import inlined
from ppd_serve.api.openai_schemas import (
    CompletedEvent,
    OpenAIError,
    OpenAIImage,
    OpenAIImagesIn,
    OpenAIImagesOut,
    OpenAIModel,
    OpenAIModels,
    PartialImageEvent,
)
from ppd_serve.api.problems import document, documented, openai_error
from ppd_serve.api.rendering import Rendering, base64_text
from ppd_serve.api.schemas import ReleaseOut
from ppd_serve.api.services import Services, ServicesDep
from ppd_serve.errors import InvalidInput, NotFound

router = APIRouter(prefix="/v1", tags=["openai"])

PERSONALIZED = "X-PPD-Personalized"
_USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")
_ERROR = inlined(OpenAIError)
_EVENTS = {
    "image_generation.partial_image": inlined(PartialImageEvent),
    "image_generation.completed": inlined(CompletedEvent),
    "error": _ERROR,
}
_OK = {
    "description": 'The pictures; with `"stream": true` each as it is finished',
    "content": sse.documented(_EVENTS),
    "headers": {
        "Generation-Id": {"schema": {"type": "string"}},
        PERSONALIZED: {"schema": {"enum": ["true", "false"]}},
    },
}


def _documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    return documented(*statuses, media_type="application/json", schema=_ERROR)


@router.post(
    "/images/generations",
    response_model=OpenAIImagesOut,
    response_model_exclude_none=True,
    responses={200: _OK, **_documented(404, 409, 410)},
)
async def openai_images(
    body: OpenAIImagesIn,
    request: Request,
    response: Response,
    caller: Drawing,
    services: ServicesDep,
    idempotency: IdempotencyDep,
) -> OpenAIImagesOut | Response:
    """Pictures, to the taste of ``user`` where that is a user of ours."""
    release = await _release(services)
    if body.model not in (None, release.name):
        raise NotFound("There is no such model", field="model")
    project, slot = caller.project, caller.slot
    rendering = Rendering(request, project, services)
    wanted, size = await _wanted(project, body, release, services)
    form = body.output_format or "png"

    async def base64_of(png: bytes) -> str:
        return base64_text(await services.generations.encode(png, form))

    if body.stream:
        partials = body.partial_images or 0
        watched = await services.generations.stream(project, wanted, idempotency, partials, slot)
        told: dict[int, int] = {}  # picture → its partial images so far

        async def write(entry: Entry) -> sse.Said | None:
            at, event = int(time.time()), entry.event
            if isinstance(event, Preview):
                index = told.setdefault(event.image, 0)
                told[event.image] += 1
                partial = PartialImageEvent(
                    b64_json=await base64_of(event.png), created_at=at, output_format=form,
                    size=size, partial_image_index=index,
                )  # fmt: skip
                return partial.type, partial.model_dump_json()
            if isinstance(event, Painted):
                completed = CompletedEvent(
                    b64_json=await base64_of(await rendering.png(event)), created_at=at,
                    output_format=form, size=size,
                )  # fmt: skip
                return completed.type, completed.model_dump_json()
            if isinstance(event, Failed):
                return "error", json.dumps(openai_error(document(event.error)))
            return None

        personal = any(user.personalized for user in watched.users)
        headers = {"Generation-Id": watched.id, PERSONALIZED: str(personal).lower()}
        return sse.EventStream(watched.entries, write, headers)

    drawn = await services.generations.draw(project, wanted, idempotency, slot)
    personal = any(user.personalized for user in drawn.users)
    response.headers.update({"Generation-Id": drawn.id, PERSONALIZED: str(personal).lower()})
    images = [
        OpenAIImage(url=rendering.link(painted))
        if body.response_format == "url"
        else OpenAIImage(b64_json=await base64_of(await rendering.png(painted)))
        for painted in drawn.images
    ]
    return OpenAIImagesOut(created=drawn.created, data=images, output_format=form, size=size)


async def _wanted(
    project: str, body: OpenAIImagesIn, release: ReleaseOut, services: Services
) -> tuple[GenerateIn, str]:
    """In our words, and the size that it will have."""
    width, height = release.sizes[0]
    if body.size not in (None, "auto"):
        width, height = map(int, str(body.size).split("x"))
        if (width, height) not in release.sizes:
            raise InvalidInput("Not a size of this model, see /releases", field="size")
    user_id = body.user_id
    if user_id is None and body.user is not None and await _is_known(project, body.user, services):
        user_id = body.user
    wanted = GenerateIn(
        prompt=body.prompt,
        n=body.n or 1,
        width=width,
        height=height,
        user_id=user_id,
        response_format=body.response_format or "b64_json",
        stream=bool(body.stream),
    )
    return wanted, f"{width}x{height}"


async def _is_known(project: str, user: str, services: Services) -> bool:
    """Apps send what they like, to be told apart by it."""
    if not _USER_ID.fullmatch(user):
        return False
    try:
        await services.users.get(project, user)
    except NotFound:
        return False
    return True


async def _release(services: Services) -> ReleaseOut:
    return (await services.status.releases()).active


@router.get("/models", responses=_documented())
async def openai_models(project: Common, services: ServicesDep) -> OpenAIModels:
    """The release in use."""
    return OpenAIModels(data=[OpenAIModel(id=(await _release(services)).name)])


@router.get("/models/{model}", responses=_documented(404))
async def openai_model(model: str, project: Common, services: ServicesDep) -> OpenAIModel:
    """The release in use, by its name."""
    if model != (await _release(services)).name:
        raise NotFound("There is no such model", field="model")
    return OpenAIModel(id=model)
