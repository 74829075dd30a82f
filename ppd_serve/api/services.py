"""What the routes call: the whole server as seen from HTTP. ``ppd_serve.gateway`` implements it.

Every method raises the errors of ``ppd_serve.errors``, which come out as problem documents.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from fastapi import Depends, Request

from ppd_serve.api.auth import Access, Keys
from ppd_serve.api.events import Drawn, Format, Listener, Painted
from ppd_serve.api.generation_schemas import GenerateIn, UserUsed
from ppd_serve.api.loop_schemas import (
    EmbeddingVersionsOut,
    FeedbackIn,
    FeedbackOut,
    QuestionIn,
    TasteCodeIn,
    TasteCodeOut,
    TasteCodesOut,
)
from ppd_serve.api.schemas import (
    EmbeddingOut,
    NeighborsOut,
    PairsOut,
    PreferencesIn,
    PreferencesOut,
    ReleasesOut,
    UserOut,
)
from ppd_serve.api.usage import Slot
from ppd_serve.errors import PPDError
from ppd_serve.meters import Meters
from ppd_serve.storage.values import Choice, Idempotency


class Users(Protocol):
    async def put(self, project: str, user_id: str) -> tuple[UserOut, bool]:
        """Create; true when it was created now."""

    async def get(self, project: str, user_id: str) -> UserOut: ...

    async def delete(self, project: str, user_id: str) -> None:
        """Forget everything, and stop what is being drawn for the user."""

    async def embedding(self, project: str, user_id: str, version: int | None) -> EmbeddingOut: ...

    async def embeddings(
        self, project: str, user_id: str, cursor: str | None, limit: int
    ) -> EmbeddingVersionsOut: ...

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


@dataclass(frozen=True)
class Asked:
    """A question; ``left`` and ``right`` are ids of pictures."""

    question_id: str
    prompt: str
    left: str
    right: str


class Questions(Protocol):
    async def ask(
        self,
        project: str,
        user_id: str,
        body: QuestionIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Asked:
        """Draw what would tell most. Being cancelled stops it, unless a key was given; it holds the
        ``slot`` until it ends."""

    async def answer(
        self, project: str, user_id: str, question_id: str, choice: Choice
    ) -> PreferencesOut:
        """Commit, wait a little for the encoder."""


class Feedback(Protocol):
    async def put(
        self, project: str, user_id: str, body: FeedbackIn, idempotency: Idempotency | None
    ) -> FeedbackOut: ...

    async def delete(self, project: str, user_id: str, feedback_id: str) -> None: ...


class TasteCodes(Protocol):
    async def add(
        self, project: str, user_id: str, body: TasteCodeIn, idempotency: Idempotency | None
    ) -> TasteCodeOut: ...

    async def list(self, project: str, user_id: str) -> TasteCodesOut: ...

    async def delete(self, project: str, user_id: str, code: str) -> None:
        """Withdraw it, and stop what is being drawn with it."""


class Exports(Protocol):
    async def archive(self, project: str, user_id: str) -> AsyncIterator[bytes]:
        """Everything held about the user, as a ZIP file in pieces. Where they break off, the user
        was deleted meanwhile."""


class Images(Protocol):
    async def add(self, project: str, data: bytes, idempotency: Idempotency | None) -> str:
        """Check and keep an upload; its id."""

    async def read(self, project: str, image_id: str) -> tuple[bytes, str]:
        """Bytes and media type."""

    async def delete(self, project: str, image_id: str) -> None: ...


@dataclass(frozen=True)
class Watched:
    """A generation and what happens to it. ``response_format``: how its maker wants pictures."""

    id: str
    users: Sequence[UserUsed]
    response_format: Literal["b64_json", "url"]
    entries: Listener


@dataclass(frozen=True)
class Recorded:
    """How far a generation is; ``images`` are those that are finished, in order."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    created: int
    release: str
    images: Sequence[Painted]
    users: Sequence[UserUsed]
    timing: dict[str, float]
    error: PPDError | None


class Generations(Protocol):
    """The first three begin a drawing and raise whatever keeps the engine from taking it. With a
    key, the same call joins the drawing, or gets its answer. The drawing holds the ``slot`` until
    it ends."""

    async def draw(
        self,
        project: str,
        body: GenerateIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Drawn:
        """Wait for the end. Being cancelled stops the drawing, unless a key was given."""

    async def stream(
        self,
        project: str,
        body: GenerateIn,
        idempotency: Idempotency | None,
        previews: int,
        slot: Slot | None = None,
    ) -> Watched:
        """Listen, with so many previews of each picture. When nobody listens any more the drawing
        stops, unless a key was given."""

    async def submit(
        self,
        project: str,
        body: GenerateIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Recorded:
        """It goes on by itself."""

    async def get(self, project: str, generation_id: str) -> Recorded: ...

    async def events(self, project: str, generation_id: str, after: int) -> Watched:
        """Listen to what follows the entry ``after``. Once it has ended, or from another process,
        its pictures and its end are told."""

    async def cancel(self, project: str, generation_id: str) -> Recorded:
        """Of no effect on one that has ended."""

    async def encode(self, png: bytes, format: Format) -> bytes:
        """A drawn picture in another format."""


class Status(Protocol):
    async def releases(self) -> ReleasesOut: ...

    async def missing(self) -> dict[str, str]:
        """Part → what is wrong with it; empty when everything is ready. Cheap."""


async def _at_once() -> None:
    """Nothing is under way."""


@dataclass(frozen=True)
class Services:
    """``running`` is entered when the app starts and left when it stops. ``drain`` may be called
    before that: nothing more is begun, and it returns when what was begun has ended."""

    users: Users
    preferences: Preferences
    questions: Questions
    feedback: Feedback
    taste_codes: TasteCodes
    exports: Exports
    images: Images
    generations: Generations
    status: Status
    access: Access
    keys: Keys
    running: AbstractAsyncContextManager[None]
    drain: Callable[[], Awaitable[None]] = _at_once
    meters: Meters = field(default_factory=Meters)


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]
