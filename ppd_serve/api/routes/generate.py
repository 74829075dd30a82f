"""``POST /generate``: pictures to somebody's taste, at once, as they come, or later."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from ppd_serve.api import sse
from ppd_serve.api.accept import choose
from ppd_serve.api.auth import Drawing
from ppd_serve.api.events import PREVIEWS, Format
from ppd_serve.api.generation_schemas import GenerateIn, GenerationOut, GenerationRecordOut
from ppd_serve.api.idempotency import IdempotencyDep
from ppd_serve.api.problems import documented
from ppd_serve.api.rendering import EVENTS, Rendering
from ppd_serve.api.services import ServicesDep
from ppd_serve.errors import InvalidInput

router = APIRouter(tags=["generate"])

PICTURES: dict[str, Format] = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpeg"}
_BYTES = {"type": "string", "format": "binary"}
_ID = {"Generation-Id": {"schema": {"type": "string"}}}
_OK = {
    "description": "The pictures; with `Accept: image/png` (webp, jpeg) the bytes of the only one; "
    'with `"stream": true` what happens as it happens, each event with an id',
    "content": {kind: {"schema": _BYTES} for kind in PICTURES} | sse.documented(EVENTS),
    "headers": _ID,
}
_LATER = {
    "description": "With `Prefer: respond-async`: the drawing goes on by itself",
    "model": GenerationRecordOut,
    "headers": {**_ID, "Location": {"schema": {"type": "string"}}},
}


@router.post(
    "/generate",
    response_model=GenerationOut,
    responses={200: _OK, 202: _LATER, **documented(404, 406, 409, 410)},
)
async def generate(
    body: GenerateIn,
    request: Request,
    response: Response,
    caller: Drawing,
    services: ServicesDep,
    idempotency: IdempotencyDep,
    prefer: Annotated[str, Header()] = "",
) -> GenerationOut | Response:
    """Draw for one user, a blend of up to four, or nobody."""
    project, slot = caller.project, caller.slot
    rendering = Rendering(request, project, services)
    accept = request.headers.get("accept", "")
    if body.stream:
        choose(accept, ["text/event-stream", "application/json"])  # the body has chosen already
        watched = await services.generations.stream(project, body, idempotency, PREVIEWS, slot)
        return sse.EventStream(
            watched.entries,
            lambda entry: rendering.event(entry, watched.response_format),
            {"Generation-Id": watched.id},
        )
    if "respond-async" in _preferences(prefer):
        choose(accept, ["application/json"])
        recorded = await services.generations.submit(project, body, idempotency, slot)
        told = (await rendering.record(recorded)).model_dump_json()
        headers = {
            "Generation-Id": recorded.id,
            "Location": f"/generations/{recorded.id}",
            "Preference-Applied": "respond-async",
        }
        return Response(told, 202, headers, "application/json")
    kind = choose(accept, ["application/json", *PICTURES])
    if kind in PICTURES and body.n != 1:
        raise InvalidInput(f"Accept: {kind} gives one picture", field="n")
    drawn = await services.generations.draw(project, body, idempotency, slot)
    headers = {"Generation-Id": drawn.id}
    if kind in PICTURES:
        png = await rendering.png(drawn.images[0])
        data = await services.generations.encode(png, PICTURES[kind])
        return Response(data, media_type=kind, headers=headers)
    response.headers.update(headers)
    return await rendering.generation(drawn, body.response_format)


def _preferences(prefer: str) -> set[str]:
    """``"respond-async, wait=10"`` → the names alone."""
    return {part.partition(";")[0].strip().lower() for part in prefer.split(",")}
