"""What the routes call: the whole server as seen from HTTP. ``ppd_serve.gateway`` implements it.

Every method raises the errors of ``ppd_serve.errors``, which come out as problem documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request

from ppd_serve.api.auth import Access
from ppd_serve.api.schemas import (
    EmbeddingOut,
    GenerateIn,
    NeighborsOut,
    PairsOut,
    PreferencesIn,
    PreferencesOut,
    ReleasesOut,
    UserOut,
    UserUsed,
)
from ppd_serve.storage.values import Idempotency


class Users(Protocol):
    async def put(self, project: str, user_id: str) -> tuple[UserOut, bool]:
        """Create; true when it was created now."""

    async def get(self, project: str, user_id: str) -> UserOut: ...

    async def delete(self, project: str, user_id: str) -> None:
        """Forget everything, and stop what is being drawn for the user."""

    async def embedding(self, project: str, user_id: str) -> EmbeddingOut: ...

    async def neighbors(self, project: str, user_id: str, k: int) -> NeighborsOut: ...


class Preferences(Protocol):
    async def add(
        self, project: str, user_id: str, body: PreferencesIn, idempotency: Idempotency | None
    ) -> PreferencesOut:
        """Check the pictures, commit, wait a little for the encoder."""

    async def page(
        self, project: str, user_id: str, cursor: str | None, limit: int
    ) -> PairsOut: ...

    async def delete(self, project: str, user_id: str, pair_id: str) -> None: ...


class Images(Protocol):
    async def add(self, project: str, data: bytes) -> str:
        """Check and keep an upload; its id."""

    async def read(self, project: str, image_id: str) -> tuple[bytes, str]:
        """Bytes and media type."""

    async def delete(self, project: str, image_id: str) -> None: ...


@dataclass(frozen=True)
class Drawn:
    """A finished generation. ``pngs`` holds the bytes by image id, or nothing when this is the
    answer that an earlier call with the same key gave."""

    id: str
    created: int
    release: str
    images: Sequence[tuple[str, int]]  # image id, seed
    users: Sequence[UserUsed]
    timing: dict[str, float]
    pngs: dict[str, bytes]


class Generations(Protocol):
    async def draw(self, project: str, body: GenerateIn, idempotency: Idempotency | None) -> Drawn:
        """Being cancelled stops the drawing, unless a key was given: the same key can join it."""


class Status(Protocol):
    async def releases(self) -> ReleasesOut: ...

    async def missing(self) -> dict[str, str]:
        """Part → what is wrong with it; empty when everything is ready. Cheap."""


@dataclass(frozen=True)
class Services:
    """``running`` is entered when the app starts and left when it stops."""

    users: Users
    preferences: Preferences
    images: Images
    generations: Generations
    status: Status
    access: Access
    running: AbstractAsyncContextManager[None]


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]
