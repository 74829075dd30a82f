"""Every error on every status as ``application/problem+json`` (RFC 9457).

The input is never echoed: a NaN or a lone surrogate in it would make the answer itself fail, and
a picture or a prompt has no business in a log of errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ppd_serve.api import usage
from ppd_serve.api.inlined import inlined
from ppd_serve.api.schemas import Problem
from ppd_serve.errors import PPDError, QueueFull

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ppd:problem:"
COMMON = (400, 401, 403, 413, 422, 429, 500, 503)  # what any route may answer
FULL_FOR = "X-PPD-Full-For"  # seconds, said to our own HTTP proxy (``LoadShedding``)
OPENAI = "/v1/"  # below it, errors are said as OpenAI's clients read them
_PROBLEM = inlined(Problem)


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE


def problem(error: PPDError, path: str = "/") -> JSONResponse:
    """The answer to an error that was raised on purpose, at a path."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, QueueFull) and error.lasts and "Retry-After" in headers:
        headers[FULL_FOR] = str(error.lasts)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _answer(path, document(error), headers)


def document(error: PPDError) -> dict[str, Any]:
    """The problem document of an error, wherever it is told."""
    where = {} if error.field is None else {"field": printable(error.field)}
    return _document(error.status, error.type, error.title, error.detail, **where)


def openai_error(document: dict[str, Any]) -> dict[str, Any]:
    """A problem document as OpenAI's error object."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "requests"}
    status = document["status"]
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = document["type"].removeprefix(TYPE_PREFIX)
    return {
        "error": {
            "message": document["detail"],
            "type": kind,
            "param": document.get("field"),
            "code": "rate_limit_exceeded" if status == 429 else code,
        }
    }


def is_promised(path: str, content_type: str) -> bool:
    """Whether an error of this type is one of ours."""
    return content_type.startswith("application/json" if path.startswith(OPENAI) else MEDIA_TYPE)


def _answer(
    path: str, document: dict[str, Any], headers: dict[str, str] | None = None
) -> JSONResponse:
    if path.startswith(OPENAI):
        return JSONResponse(openai_error(document), document["status"], headers)
    return ProblemResponse(document, document["status"], headers)


def documented(
    *statuses: int, media_type: str = MEDIA_TYPE, schema: dict[str, Any] = _PROBLEM
) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: these statuses, and those that any route may give."""
    content = {media_type: {"schema": schema}}
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*COMMON, *statuses})
    }
    wait = {"description": "Seconds", "required": True, "schema": {"type": "string"}}
    told = {"schema": {"type": "string"}}
    found[429]["headers"] = {"Retry-After": wait, **dict.fromkeys(usage.HEADERS, told)}
    found[503]["headers"] = {"Retry-After": wait}
    return found


def install(app: FastAPI) -> None:
    """Make the errors of routes, validation and the router come out as problems. (Bugs, too: the
    ``Edge`` middleware sees to those.)"""
    app.add_exception_handler(PPDError, _raised_on_purpose)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _raised_on_purpose(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PPDError)
    return problem(error, request.scope["path"])


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    path, found = request.scope["path"], error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return _answer(
            path, _document(400, "malformed-json", "Malformed JSON", "The body is not JSON")
        )
    errors = [
        {"field": _path(item["loc"]), "detail": printable(str(item["msg"]))} for item in found[:20]
    ]
    told = _document(
        422, "invalid-input", "Invalid input", field=errors[0]["field"],
        detail=errors[0]["detail"], errors=errors,
    )  # fmt: skip
    return _answer(path, told)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 400:  # the only 400 that FastAPI raises itself
        return _answer(
            path, _document(400, "malformed-json", "Malformed JSON", "The body can't be read")
        )
    phrase = HTTPStatus(error.status_code).phrase
    kind = phrase.lower().replace(" ", "-")
    return _answer(path, _document(error.status_code, kind, phrase), dict(error.headers or {}))


def _document(status: int, kind: str, title: str, detail: str = "", **more: Any) -> dict[str, Any]:
    found = {"type": TYPE_PREFIX + kind, "title": title, "status": status}
    return {**found, "detail": printable(detail) or title, **more}


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
