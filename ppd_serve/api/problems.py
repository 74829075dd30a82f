"""Every error on every status as ``application/problem+json`` (RFC 9457).

The input is never echoed: a NaN or a lone surrogate in it would make the answer itself fail, and
a picture or a prompt has no business in a log of errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ppd_serve.api.schemas import Problem
from ppd_serve.errors import PPDError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ppd:problem:"
COMMON = (400, 401, 403, 413, 422, 500, 503)  # what any route may answer


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE


def problem(error: PPDError) -> ProblemResponse:
    """The answer to an error that was raised on purpose."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    where = {} if error.field is None else {"field": printable(error.field)}
    return _document(error.status, error.type, error.title, error.detail, headers=headers, **where)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: these statuses, and those that any route may give."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
        }
        for status in sorted({*COMMON, *statuses})
    }


def install(app: FastAPI) -> None:
    """Make the errors of routes, validation and the router come out as problems. (Bugs, too: the
    ``Edge`` middleware sees to those.)"""
    app.add_exception_handler(PPDError, _raised_on_purpose)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _raised_on_purpose(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, PPDError)
    return problem(error)


async def _invalid(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return _document(400, "malformed-json", "Malformed JSON", "The body is not JSON")
    errors = [
        {"field": _path(item["loc"]), "detail": printable(str(item["msg"]))} for item in found[:20]
    ]
    return _document(
        422, "invalid-input", "Invalid input", field=errors[0]["field"],
        detail=errors[0]["detail"], errors=errors,
    )  # fmt: skip


async def _http(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the only 400 that FastAPI raises itself
        return _document(400, "malformed-json", "Malformed JSON", "The body can't be read")
    phrase = HTTPStatus(error.status_code).phrase
    kind = phrase.lower().replace(" ", "-")
    return _document(error.status_code, kind, phrase, headers=dict(error.headers or {}))


def _document(
    status: int, kind: str, title: str, detail: str = "",
    *, headers: dict[str, str] | None = None, **more: Any,
) -> ProblemResponse:  # fmt: skip
    document = {"type": TYPE_PREFIX + kind, "title": title, "status": status}
    return ProblemResponse(
        {**document, "detail": printable(detail) or title, **more}, status, headers
    )


def _path(location: Sequence[int | str]) -> str:
    """``("body", "pairs", 0, "prompt")`` → ``pairs.0.prompt``. The last part may be a name that
    the caller made up, hence printed with care."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] in {"body", "path", "query", "header"}:
        parts = parts[1:]
    return printable(".".join(parts))[:200]


def printable(text: str) -> str:
    """Text that any JSON encoder and terminal can take: no lone surrogates, no control bytes."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
