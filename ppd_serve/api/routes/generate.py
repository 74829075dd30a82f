"""``POST /generate``: pictures to somebody's taste."""

from __future__ import annotations

import base64

from fastapi import APIRouter, Request, Response

from ppd_serve.api.auth import Project, access
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import GeneratedImage, GenerateIn, GenerationOut
from ppd_serve.api.services import Drawn, Services, ServicesDep
from ppd_serve.errors import InvalidInput

router = APIRouter(tags=["generate"])

_OK = {
    "description": "The pictures; with `Accept: image/png` the bytes of the only one",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {"Generation-Id": {"schema": {"type": "string"}}},
}


@router.post(
    "/generate", response_model=GenerationOut, responses={200: _OK, **documented(404, 409)}
)
async def generate(
    body: GenerateIn,
    request: Request,
    response: Response,
    project: Project,
    services: ServicesDep,
    idempotency: IdempotencyDep,
) -> GenerationOut | Response:
    """Draw for one user, a blend of up to four, or nobody."""
    bare = request.headers.get("accept", "").split(",")[0].split(";")[0].strip() == "image/png"
    if bare and body.n != 1:
        raise InvalidInput("Accept: image/png gives one picture", field="n")
    drawn = await services.generations.draw(project, body, idempotency)
    response.headers["Generation-Id"] = drawn.id
    if bare:
        (image_id, _), *_ = drawn.images
        png = await _png(services, project, drawn, image_id)
        return Response(png, media_type="image/png", headers={"Generation-Id": drawn.id})
    images = []
    for image_id, seed in drawn.images:
        image = GeneratedImage(image_id=image_id, seed=seed)
        if body.response_format == "url":
            image.url = access(request).link(str(request.base_url), project, image_id)
        else:
            png = await _png(services, project, drawn, image_id)
            image.b64_json = base64.b64encode(png).decode("ascii")
        images.append(image)
    return GenerationOut(
        id=drawn.id,
        created=drawn.created,
        release=drawn.release,
        images=images,
        users=list(drawn.users),
        timing=drawn.timing,
    )


async def _png(services: Services, project: str, drawn: Drawn, image_id: str) -> bytes:
    return drawn.pngs.get(image_id) or (await services.images.read(project, image_id))[0]
