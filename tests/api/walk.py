"""Every route of an app, whether or not the schema shows it."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

OPEN = {"/healthz", "/readyz", "/docs", "/openapi.json"}  # to everybody
COMMON = {"/releases", "/v1/models", "/v1/models/{model}"}  # to every key; they are nobody's


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """``("GET", "/users/{user_id}")`` … of all that somebody owns, or that names who does."""
    return sorted(
        (method, route.path)
        for route in iter_route_contexts(app.routes)
        for method in route.methods
        if route.path not in OPEN | COMMON
    )
