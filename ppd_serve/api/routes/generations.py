"""``/generations``: look at a drawing, listen to it again, stop it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from ppd_serve.api import sse
from ppd_serve.api.auth import Drawing
from ppd_serve.api.generation_schemas import GenerationRecordOut
from ppd_serve.api.problems import documented
from ppd_serve.api.rendering import EVENTS, Rendering
from ppd_serve.api.schemas import Id
from ppd_serve.api.services import ServicesDep

router = APIRouter(prefix="/generations/{generation_id}", tags=["generate"])

_STREAM = {"description": "What happens, as it happens", "content": sse.documented(EVENTS)}


@router.get("", responses=documented(404))
async def get_generation(
    generation_id: Id, request: Request, caller: Drawing, services: ServicesDep
) -> GenerationRecordOut:
    """How far it is, with the pictures that are finished."""
    recorded = await services.generations.get(caller.project, generation_id)
    return await Rendering(request, caller.project, services).record(recorded)


@router.get(
    "/events",
    response_class=Response,
    responses={200: _STREAM, **documented(404)},
)
async def listen_to_generation(
    generation_id: Id,
    request: Request,
    caller: Drawing,
    services: ServicesDep,
    last: Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**53)] = 0,
) -> sse.EventStream:
    """From the beginning, or from where a broken connection ended. Once it is over, the pictures
    and the end are told again."""
    watched = await services.generations.events(caller.project, generation_id, last)
    rendering = Rendering(request, caller.project, services)
    return sse.EventStream(
        watched.entries,
        lambda entry: rendering.event(entry, watched.response_format),
        {"Generation-Id": watched.id},
    )


@router.delete("", status_code=202, responses=documented(404))
async def cancel_generation(
    generation_id: Id, request: Request, caller: Drawing, services: ServicesDep
) -> GenerationRecordOut:
    """Stop it at the next step. One that has ended stays as it is."""
    recorded = await services.generations.cancel(caller.project, generation_id)
    return await Rendering(request, caller.project, services).record(recorded)
