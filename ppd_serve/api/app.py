"""The HTTP face of the server: routes, errors and nothing else. No torch and no Ray here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from ppd_serve.api import docs, problems
from ppd_serve.api.edge import Edge
from ppd_serve.api.routes import generate, health, images, preferences, releases, users
from ppd_serve.api.services import Services


def create_app(services: Services) -> FastAPI:
    """The application around any implementation of ``services``."""

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
    problems.install(app)
    for resource in (users, preferences, images, generate, releases, health):
        app.include_router(resource.router)

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(docs.page(app.openapi()))

    return app
