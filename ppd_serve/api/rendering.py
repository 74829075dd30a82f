"""Drawn pictures as answers: with their bytes, or as links that a browser can follow."""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

from fastapi import Request

from ppd_serve.api.auth import access
from ppd_serve.api.events import Done, Drawn, Entry, Failed, Painted, Preview, Queued, Step
from ppd_serve.api.generation_schemas import GeneratedImage, GenerationOut, GenerationRecordOut
from ppd_serve.api.inlined import inlined
from ppd_serve.api.problems import document
from ppd_serve.api.schemas import Problem
from ppd_serve.api.services import Recorded, Services
from ppd_serve.api.sse import Said

ResponseFormat = Literal["b64_json", "url"]


class Rendering:
    """For the caller of one request."""

    def __init__(self, request: Request, project: str, services: Services) -> None:
        self._request, self._project, self._services = request, project, services

    async def png(self, painted: Painted) -> bytes:
        """Raises ``NotFound`` when it has expired."""
        if painted.png is not None:
            return painted.png
        return (await self._services.images.read(self._project, painted.image_id))[0]

    def link(self, painted: Painted) -> str:
        base = str(self._request.base_url)
        return access(self._request).link(base, self._project, painted.image_id)

    async def image(self, painted: Painted, form: ResponseFormat) -> GeneratedImage:
        image = GeneratedImage(image_id=painted.image_id, seed=painted.seed)
        if form == "url":
            image.url = self.link(painted)
        else:
            image.b64_json = base64_text(await self.png(painted))
        return image

    async def generation(self, drawn: Drawn, form: ResponseFormat) -> GenerationOut:
        return GenerationOut(
            id=drawn.id,
            created=drawn.created,
            release=drawn.release,
            images=[await self.image(painted, form) for painted in drawn.images],
            users=list(drawn.users),
            timing=drawn.timing,
        )

    async def record(self, recorded: Recorded) -> GenerationRecordOut:
        error = recorded.error
        return GenerationRecordOut(
            id=recorded.id,
            status=recorded.state,
            created=recorded.created,
            release=recorded.release,
            images=[await self.image(painted, "url") for painted in recorded.images],
            users=list(recorded.users),
            timing=recorded.timing,
            error=None if error is None else Problem.model_validate(document(error)),
        )

    async def event(self, entry: Entry, form: ResponseFormat) -> Said:
        """As the generation's own event stream says it."""
        match entry.event:
            case Queued(position):
                return "queued", json.dumps({"position": position})
            case Step(image, step, steps):
                return "step", json.dumps({"image": image, "step": step, "steps": steps})
            case Preview(image, png):
                told = {"image": image, "b64_json": base64_text(png)}
                return "preview", json.dumps(told)
            case Painted() as painted:
                rendered = await self.image(painted, form)
                return "image", json.dumps({"image": painted.image, **rendered.model_dump()})
            case Done(drawn):
                return "done", (await self.generation(drawn, form)).model_dump_json()
            case Failed(error):
                return "error", json.dumps(document(error))


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_NUMBER = {"type": "integer"}
EVENTS: dict[str, Any] = {  # name → JSON schema of its data
    "queued": {"type": "object", "properties": {"position": _NUMBER}},
    "step": {
        "type": "object",
        "properties": {"image": _NUMBER, "step": _NUMBER, "steps": _NUMBER},
    },
    "preview": {
        "type": "object",
        "properties": {"image": _NUMBER, "b64_json": {"type": "string"}},
    },
    "image": {
        "type": "object",
        "properties": {
            "image": _NUMBER,
            "image_id": {"type": "string"},
            "seed": _NUMBER,
            "b64_json": {"type": "string"},
            "url": {"type": "string"},
        },
    },
    "done": inlined(GenerationOut),
    "error": inlined(Problem),
}
