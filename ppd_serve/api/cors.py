"""Which web pages may call from a browser, and what they may read of the answers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from ppd_serve.api.problems import problem
from ppd_serve.errors import Forbidden

METHODS = ("GET", "POST", "PUT", "DELETE")
SENT = ("Authorization", "Idempotency-Key", "Last-Event-ID", "Prefer", "X-Request-ID")
READ = (
    "Generation-Id",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-PPD-Personalized",
    "X-Request-ID",
)


class Cors(CORSMiddleware):
    """Starlette's, with a problem document for what is not allowed. No cookies: who calls sends
    a key."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app, origins, allow_methods=METHODS, allow_headers=SENT, expose_headers=READ
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refusal = problem(Forbidden("This page may not make this call"))
        refusal.headers["Vary"] = response.headers["Vary"]
        return refusal
