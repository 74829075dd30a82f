"""Every error this client raises on purpose.

PPDError
├── ConnectionFailed        no answer: refused, reset, broken off (after every retry)
│   └── TimedOut            no answer in time, or a server that did not become ready in time
├── UnexpectedAnswer        an answer that is not what the interface promises (a proxy's page, say)
└── APIError                the server said no, as problem+json (RFC 9457)
    ├── Unauthorized        401
    ├── Forbidden           403
    ├── NotFound            404
    ├── Conflict            409
    ├── TooLarge            413
    ├── InvalidInput        400, 405, 406, 415, 422: ``field`` names what is wrong
    ├── Unavailable         429, 502, 503: worth another try after ``retry_after`` seconds
    └── ServerError         every other 5xx

``APIError.type`` is the stable word to branch on (``"bad-image"``, ``"queue-full"`` …); classes
only group what callers usually handle together.
"""

from __future__ import annotations

from typing import Any

import httpx


class PPDError(Exception):
    """Base class: ``except PPDError`` catches everything above."""


class ConnectionFailed(PPDError):
    pass


class TimedOut(ConnectionFailed):
    pass


class UnexpectedAnswer(PPDError):
    pass


class APIError(PPDError):
    """The server's problem document.

    status: HTTP status; type: stable last part of the problem's type URI; detail: a sentence for
    people; field: the offending field, if one is to blame; request_id: what to quote in a report;
    retry_after: seconds, if the server named a time.
    """

    def __init__(
        self,
        status: int,
        type: str,
        detail: str,
        *,
        field: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {type}: {f'{field}: ' if field else ''}{detail}")
        self.status = status
        self.type = type
        self.detail = detail
        self.field = field
        self.request_id = request_id
        self.retry_after = retry_after


class Unauthorized(APIError):
    pass


class Forbidden(APIError):
    pass


class NotFound(APIError):
    pass


class Conflict(APIError):
    pass


class TooLarge(APIError):
    pass


class InvalidInput(APIError):
    pass


class Unavailable(APIError):
    pass


class ServerError(APIError):
    pass


_BY_STATUS: dict[int, type[APIError]] = {
    400: InvalidInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: InvalidInput,
    406: InvalidInput,
    409: Conflict,
    413: TooLarge,
    415: InvalidInput,
    422: InvalidInput,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
}


def api_error(response: httpx.Response) -> APIError:
    """The error a response stands for, whether or not its body is the promised problem document."""
    return problem_error(_problem(response), response.status_code, response)


def problem_error(problem: dict[str, Any], status: int, response: httpx.Response) -> APIError:
    """The error that a problem document stands for, and the response that it came with."""
    cls = _BY_STATUS.get(status, ServerError if status >= 500 else APIError)
    return cls(
        status,
        str(problem.get("type") or "unknown").rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1],
        str(problem.get("detail") or problem.get("title") or response.reason_phrase),
        field=problem.get("field"),
        request_id=response.headers.get("x-request-id"),
        retry_after=retry_after(response),
    )


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of ``Retry-After``; None if absent or not a plain number (a date is not obeyed)."""
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
