"""``/images``: pictures by random id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from ppd_serve.api.auth import Credentials, Project, access, admitted
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import Id, ImageOut
from ppd_serve.api.services import ServicesDep
from ppd_serve.errors import Forbidden
from ppd_serve.keys import Scope

router = APIRouter(prefix="/images", tags=["images"])

_BYTES = {"type": "string", "format": "binary"}
_PICTURE = {kind: {"schema": _BYTES} for kind in ("image/png", "image/jpeg", "image/webp")}


@router.post(
    "",
    status_code=201,
    responses=documented(409),
    openapi_extra={"requestBody": {"required": True, "content": _PICTURE}},
)
async def upload_image(
    request: Request, project: Project, services: ServicesDep, idempotency: IdempotencyDep
) -> ImageOut:
    """Send the encoded bytes as the body. An upload that nothing uses expires after a day."""
    return ImageOut(image_id=await services.images.add(project, await request.body(), idempotency))


@router.get(
    "/{image_id}",
    response_class=Response,
    responses={200: {"content": _PICTURE, "description": "The bytes"}, **documented(404)},
)
async def get_image(
    image_id: Id,
    request: Request,
    services: ServicesDep,
    credentials: Credentials,
    link_project: Annotated[Id | None, Query(alias="project")] = None,
    expires: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    signature: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The bytes, for a key of the project or by a signed link."""
    if signature is not None:
        if link_project is None or expires is None:
            raise Forbidden("This link is incomplete")
        access(request).check_link(link_project, image_id, expires, signature)
        data, media_type = await services.images.read(link_project, image_id)
    else:
        async with admitted(request, credentials, frozenset({Scope.READ})) as caller:
            data, media_type = await services.images.read(caller.project, image_id)
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
    return Response(data, media_type=media_type, headers=headers)


@router.delete("/{image_id}", status_code=204, responses=documented(409))
async def delete_image(image_id: Id, project: Project, services: ServicesDep) -> None:
    """Also right the second time; 409 while a pair uses it."""
    await services.images.delete(project, image_id)
