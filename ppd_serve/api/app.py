"""The HTTP face of the server: routes, errors and nothing else. No torch and no Ray here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from ppd_serve.api import docs, problems
from ppd_serve.api.cors import Cors
from ppd_serve.api.edge import Edge
from ppd_serve.api.metered import Metered
from ppd_serve.api.routes import (
    export,
    feedback,
    generate,
    generations,
    health,
    images,
    metrics,
    openai,
    preferences,
    questions,
    releases,
    taste_codes,
    users,
)
from ppd_serve.api.services import Services


def create_app(services: Services, cors_origins: Sequence[str] = ()) -> FastAPI:
    """The application around any implementation of ``services``. ``cors_origins``: the web pages
    that may call it (``*``: all)."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with services.running:
            yield

    app = FastAPI(
        title="ppd-serve",
        version=version("ppd-serve"),
        description="Text to image to one person's taste, learned from a few choices.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.add_middleware(Edge)
    if cors_origins:
        app.add_middleware(Cors, cors_origins)  # around the Edge: its errors can be read, too
    app.add_middleware(Metered, services.meters)
    problems.install(app)
    resources = (
        users, preferences, questions, feedback, taste_codes, export, images, generate,
        generations, openai, releases, health, metrics,
    )  # fmt: skip
    for resource in resources:
        app.include_router(resource.router)

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(docs.page(app.openapi()))

    return app
