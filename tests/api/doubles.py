"""An in-memory server behind the routes: what the Protocols promise, with nothing real in it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from typing import Self

from PIL import Image

from ppd_serve.api import generation_schemas, loop_schemas, schemas
from ppd_serve.api.auth import Access
from ppd_serve.api.events import (
    Done,
    Drawn,
    Entry,
    Event,
    Failed,
    Painted,
    Queued,
    Step,
)
from ppd_serve.api.images import check_image, decode_base64
from ppd_serve.api.services import Asked, Recorded, Services, Watched
from ppd_serve.api.usage import Slot
from ppd_serve.errors import Cancelled, GenerationFailed, NotFound, PPDError
from ppd_serve.keys import ApiKey
from ppd_serve.storage.values import Choice, Idempotency

CURRENT = schemas.EmbeddingState(space="s", version=1, pairs_used=1, status="current")


def png(size: tuple[int, int] = (8, 8), colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


class Memory:
    """Every service in one: ``calls`` records what reached it, ``error`` is raised by all."""

    def __init__(self) -> None:
        self.people: dict[tuple[str, str], schemas.UserOut] = {}
        self.pictures: dict[tuple[str, str], bytes] = {}
        self.calls: list[object] = []
        self.error: BaseException | None = None
        self.parts: dict[str, str] = {}

    def _check(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error


class MemoryUsers(Memory):
    async def put(self, project: str, user_id: str) -> tuple[schemas.UserOut, bool]:
        self._check("put", project, user_id)
        new = schemas.UserOut(
            user_id=user_id, pairs_total=0, embedding=None, profile=None, ask_more=True
        )
        created = (project, user_id) not in self.people
        return self.people.setdefault((project, user_id), new), created

    async def get(self, project: str, user_id: str) -> schemas.UserOut:
        self._check("get", project, user_id)
        try:
            return self.people[project, user_id]
        except KeyError:
            raise NotFound("No such user") from None

    async def delete(self, project: str, user_id: str) -> None:
        self._check("delete", project, user_id)
        self.people.pop((project, user_id), None)

    async def embedding(
        self, project: str, user_id: str, version: int | None
    ) -> schemas.EmbeddingOut:
        await self.get(project, user_id)
        self._check("embedding", version)
        return schemas.EmbeddingOut(space="s", version=1, shape=(1, 2), values=[[0.5, -0.5]])

    async def embeddings(
        self, project: str, user_id: str, cursor: str | None, limit: int
    ) -> loop_schemas.EmbeddingVersionsOut:
        self._check("embeddings", cursor, limit)
        page = [loop_schemas.EmbeddingVersionOut(version=1, pairs_used=1)]
        return loop_schemas.EmbeddingVersionsOut(embeddings=page, next=None)

    async def neighbors(self, project: str, user_id: str, k: int) -> schemas.NeighborsOut:
        self._check("neighbors", k)
        return schemas.NeighborsOut(neighbors=[])


class MemoryPreferences(Memory):
    async def add(
        self,
        project: str,
        user_id: str,
        body: schemas.PreferencesIn,
        idempotency: Idempotency | None,
    ) -> schemas.PreferencesOut:
        self._check("add", idempotency)
        for number, pair in enumerate(body.pairs):
            for side in ("preferred", "rejected"):
                text = getattr(pair, side).b64_json
                if text is not None:
                    field = f"pairs.{number}.{side}.b64_json"
                    check_image(decode_base64(text, field), field)
        ids = [f"p{number}" for number in range(len(body.pairs))]
        return schemas.PreferencesOut(
            user_id=user_id, pair_ids=ids, pairs_total=len(ids), embedding=CURRENT, profile=None
        )

    async def page(
        self, project: str, user_id: str, cursor: str | None, limit: int
    ) -> schemas.PairsOut:
        self._check("page", cursor, limit)
        return schemas.PairsOut(pairs=[], next=None)

    async def delete(self, project: str, user_id: str, pair_id: str) -> None:
        self._check("delete", pair_id)


class MemoryQuestions(Memory):
    async def ask(
        self,
        project: str,
        user_id: str,
        body: loop_schemas.QuestionIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Asked:
        self._check("ask", body.prompt, idempotency)
        return Asked("q0", body.prompt or "a fish", "i0", "i1")

    async def answer(
        self, project: str, user_id: str, question_id: str, choice: Choice
    ) -> schemas.PreferencesOut:
        self._check("answer", question_id, choice)
        ids = [] if choice == "neither" else ["p0"]
        return schemas.PreferencesOut(
            user_id=user_id, pair_ids=ids, pairs_total=len(ids), embedding=CURRENT, profile=None
        )


class MemoryFeedback(Memory):
    async def put(
        self,
        project: str,
        user_id: str,
        body: loop_schemas.FeedbackIn,
        idempotency: Idempotency | None,
    ) -> loop_schemas.FeedbackOut:
        self._check("put", body, idempotency)
        return loop_schemas.FeedbackOut(feedback_id="f0", image_id=body.image_id, liked=body.liked)

    async def delete(self, project: str, user_id: str, feedback_id: str) -> None:
        self._check("delete", feedback_id)


class MemoryTasteCodes(Memory):
    async def add(
        self,
        project: str,
        user_id: str,
        body: loop_schemas.TasteCodeIn,
        idempotency: Idempotency | None,
    ) -> loop_schemas.TasteCodeOut:
        self._check("add", body.version, idempotency)
        return loop_schemas.TasteCodeOut(code="taste_0", version=body.version or 1, created=1.5)

    async def list(self, project: str, user_id: str) -> loop_schemas.TasteCodesOut:
        code = loop_schemas.TasteCodeOut(code="taste_0", version=1, created=1.5)
        return loop_schemas.TasteCodesOut(taste_codes=[code])

    async def delete(self, project: str, user_id: str, code: str) -> None:
        self._check("delete", code)


NOTHING = b"PK\5\6" + bytes(18)  # an archive with nothing in it


class MemoryExports(Memory):
    async def archive(self, project: str, user_id: str) -> AsyncIterator[bytes]:
        self._check("archive", project, user_id)
        if user_id == "nobody":
            raise NotFound("No such user")

        async def pieces() -> AsyncIterator[bytes]:
            for piece in (NOTHING[:4], NOTHING[4:]):
                yield piece

        return pieces()


class MemoryImages(Memory):
    async def add(self, project: str, data: bytes, idempotency: Idempotency | None) -> str:
        self._check("add", len(data), idempotency)
        check_image(data, "body")
        image_id = f"i{len(self.pictures)}"
        self.pictures[project, image_id] = data
        return image_id

    async def read(self, project: str, image_id: str) -> tuple[bytes, str]:
        self._check("read", project, image_id)
        try:
            return self.pictures[project, image_id], "image/png"
        except KeyError:
            raise NotFound("No such picture") from None

    async def delete(self, project: str, image_id: str) -> None:
        self._check("delete", image_id)


class MemoryGenerations(Memory):
    """Draws at once. ``log`` is what listeners hear; a test may write it."""

    log: Sequence[Event] | None = None

    async def draw(
        self,
        project: str,
        body: generation_schemas.GenerateIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Drawn:
        self._check("draw", body)
        images = [Painted(n, f"g{n}", (body.seed or 0) + n, png()) for n in range(body.n)]
        return Drawn("gen1", 1, "studio", images, [], {"total": 0.1})

    async def stream(
        self,
        project: str,
        body: generation_schemas.GenerateIn,
        idempotency: Idempotency | None,
        previews: int,
        slot: Slot | None = None,
    ) -> Watched:
        drawn = await self.draw(project, body, idempotency)
        log = self.log or [Queued(0), Step(0, 1, 1), *drawn.images, Done(drawn)]
        return Watched(drawn.id, [], body.response_format, MemoryListener(log))

    async def submit(
        self,
        project: str,
        body: generation_schemas.GenerateIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Recorded:
        await self.draw(project, body, idempotency)
        return Recorded("gen1", "queued", 1, "studio", [], [], {}, None)

    async def get(self, project: str, generation_id: str) -> Recorded:
        self._check("get", generation_id)
        if generation_id != "gen1":
            raise NotFound("There is no such generation")
        images = [Painted(0, "g0", 7)]
        return Recorded("gen1", "failed", 1, "studio", images, [], {}, GenerationFailed("why"))

    async def events(self, project: str, generation_id: str, after: int) -> Watched:
        await self.get(project, generation_id)
        self._check("events", after)
        return Watched(generation_id, [], "url", MemoryListener(self.log or [Failed(Cancelled())]))

    async def cancel(self, project: str, generation_id: str) -> Recorded:
        return await self.get(project, generation_id)

    async def encode(self, png: bytes, format: str) -> bytes:
        return f"{format}: ".encode() + png if format != "png" else png


class MemoryListener:
    def __init__(self, log: Sequence[Event]) -> None:
        self._entries = iter([Entry(number, event) for number, event in enumerate(log, 1)])
        self.closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        for entry in self._entries:
            return entry
        raise StopAsyncIteration

    def close(self) -> None:
        self.closed = True


class MemoryStatus(Memory):
    async def releases(self) -> schemas.ReleasesOut:
        self._check("releases")
        active = schemas.ReleaseOut(
            name="studio", version="1", backbone="b", encoder="e", embedding_space="s",
            sizes=[(128, 128)], samplers=["ddim"],
        )  # fmt: skip
        return schemas.ReleasesOut(active=active, known=["studio"])

    async def missing(self) -> dict[str, str]:
        return self.parts


class MemoryKeys:
    """``stored``: a test may put keys in, by digest."""

    def __init__(self) -> None:
        self.stored: dict[str, ApiKey] = {}

    async def known(self) -> dict[str, ApiKey]:
        return self.stored


def memory(keys: dict[str, str] | None = None) -> Services:
    return Services(
        users=MemoryUsers(),
        preferences=MemoryPreferences(),
        questions=MemoryQuestions(),
        feedback=MemoryFeedback(),
        taste_codes=MemoryTasteCodes(),
        exports=MemoryExports(),
        images=MemoryImages(),
        generations=MemoryGenerations(),
        status=MemoryStatus(),
        access=Access(b"secret", keys),
        keys=MemoryKeys(),
        running=nullcontext(),  # type: ignore[arg-type]
    )


def every_error(cls: type[PPDError] = PPDError) -> list[type[PPDError]]:
    return [cls, *(error for sub in cls.__subclasses__() for error in every_error(sub))]
