"""``/users/{id}/export``: everything held about a user, to take along."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from ppd_serve.api.auth import Project
from ppd_serve.api.problems import documented
from ppd_serve.api.schemas import Id
from ppd_serve.api.services import ServicesDep

router = APIRouter(prefix="/users/{user_id}/export", tags=["users"])

_ZIP = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
_HEADERS = {
    "Content-Disposition": 'attachment; filename="export.zip"',
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-store",
}


@router.get(
    "",
    response_class=Response,
    responses={200: {"content": _ZIP, "description": "The archive"}, **documented(404)},
)
async def export_user(user_id: Id, project: Project, services: ServicesDep) -> Response:
    """Everything held about a user, as one ZIP archive: `user.json`; `pairs`, `questions`,
    `feedback`, `embeddings`, `taste_codes` and `generations` as `.jsonl`, one record a line, oldest
    first (embeddings: newest first); and the pictures that these name, as long as they are kept, as
    `images/{image_id}.png` (`.jpeg`, `.webp`). Times are seconds since the epoch. Taste codes are
    told by their ends, and of a blend only the user's own part. An archive that breaks off can't be
    opened: ask again."""
    pieces = await services.exports.archive(project, user_id)
    return StreamingResponse(pieces, media_type="application/zip", headers=_HEADERS)
