"""Generation records: what a drawing leaves behind, and what can be told from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ppd_serve.api.events import Done, Drawn, Entry, Failed, Painted
from ppd_serve.api.generation_schemas import GenerateIn, UserUsed
from ppd_serve.api.services import Recorded
from ppd_serve.errors import (
    Cancelled,
    Conflict,
    GenerationFailed,
    NotFound,
    PPDError,
    Unavailable,
)
from ppd_serve.gateway.blends import Blend, masked
from ppd_serve.gateway.event_log import EventLog
from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.storage.store import Generation, GenerationState, NewImage, Store

RETRY_SECONDS = 0.5
SEEDS = 2**32
log = logging.getLogger(__name__)


class Records:
    def __init__(self, store: Store, db: Threads, tasks: Tasks, release: str) -> None:
        self._store, self._db, self._tasks, self._release = store, db, tasks, release

    async def begin(
        self,
        project: str,
        body: GenerateIn,
        seed: int,
        blend: Blend,
        users: Sequence[UserUsed],
        state: GenerationState,
    ) -> Generation:
        """``seed``: of the first picture. Raises ``NotFound`` if a user or a taste code is no
        longer there."""
        request = {**body.model_dump(exclude_none=True), "seed": seed}
        for user in request.get("users", []):
            if "taste_code" in user:
                user["taste_code"] = masked(user["taste_code"])
        return await self._db(
            self._store.create_generation,
            project,
            request,
            blend.incarnations,
            {"release": self._release, "users": [user.model_dump() for user in users]},
            list(blend.codes),
            state,
        )

    async def is_running(self, project: str, generation_id: str) -> None:
        await self._db(self._store.set_generation, project, generation_id, "running")

    async def keep(
        self, project: str, record: Generation, image: int, png: bytes, size: tuple[int, int]
    ) -> Painted:
        """Store picture number ``image``. A user deleted meanwhile took the record along, or a
        taste code was withdrawn: ``NotFound``; somebody cancelled it in another process:
        ``Cancelled``."""
        try:
            stored = await self._db(
                self._store.add_image, project, NewImage(png, "image/png", *size), "generated",
                record.generation_id, image,
            )  # fmt: skip
        except (NotFound, Conflict):
            raise await self._ended_elsewhere(project, record) from None
        return Painted(image, stored.image_id, _seed(record, image), png)

    async def finish(
        self, project: str, record: Generation, timing: dict[str, float], log: EventLog
    ) -> None:
        """Raises ``NotFound`` if the record is gone, ``Cancelled`` if it has been ended."""
        answer = _answer(record, log, timing)
        if not await self._db(
            self._store.set_generation, project, record.generation_id, "done", None, answer
        ):
            raise await self._ended_elsewhere(project, record)

    async def fail(self, project: str, record: Generation, error: PPDError, log: EventLog) -> None:
        """While the database is away, a little later."""
        state: GenerationState = "cancelled" if isinstance(error, Cancelled) else "failed"
        told = {"type": error.type, "detail": error.detail}
        end = (project, record.generation_id, state, told, _answer(record, log))
        try:
            await self._db(self._store.set_generation, *end)
        except Unavailable:
            self._tasks.start(self._fail_later(*end))

    async def _fail_later(self, *end: Any) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._db(self._store.set_generation, *end)
                return
            except Unavailable as trouble:
                log.warning("a generation's end is not recorded yet: %r", trouble)

    async def _ended_elsewhere(self, project: str, record: Generation) -> PPDError:
        try:
            ended = await self.get(project, record.generation_id)
        except NotFound:
            return NotFound("This user was deleted")
        return Cancelled() if ended.error is None else _error(ended.error)

    async def get(self, project: str, generation_id: str) -> Generation:
        """Raises ``NotFound``."""
        return await self._db(self._store.get_generation, project, generation_id)

    async def cancel(self, project: str, generation_id: str) -> None:
        error = {"type": Cancelled.type, "detail": Cancelled.title}
        await self._db(self._store.set_generation, project, generation_id, "cancelled", error)


def recorded(record: Generation) -> Recorded:
    answer = record.answer or {}
    return Recorded(
        id=record.generation_id,
        state=record.state,
        created=int(record.created),
        release=answer.get("release", ""),
        images=[
            Painted(image, image_id, _seed(record, image))
            for image, image_id in record.images.items()
        ],
        users=[UserUsed.model_validate(user) for user in answer.get("users", [])],
        timing=answer.get("timing", {}),
        error=None if record.error is None else _error(record.error),
    )


def drawn(record: Recorded) -> Drawn:
    return Drawn(
        record.id, record.created, record.release, record.images, record.users, record.timing
    )


def entries(record: Generation, after: int) -> list[Entry]:
    """What can still be told of one that has ended: its pictures, in the order in which they were
    finished, and its end, under the numbers that they had; of one whose process died, as if they
    came after what was heard."""
    told = recorded(record)
    numbers: dict[str, int] = (record.answer or {}).get("events", {})
    images = sorted(told.images, key=lambda painted: numbers.get(str(painted.image), 0))
    found: list[Entry] = []
    for painted in images:
        number = numbers.get(str(painted.image), after + 1 + len(found))
        found.append(Entry(number, painted))
    end = Done(drawn(told)) if told.state == "done" else Failed(told.error or Cancelled())
    return [*found, Entry(numbers.get("end", after + 1 + len(found)), end)]


def _answer(
    record: Generation, log: EventLog, timing: dict[str, float] | None = None
) -> dict[str, Any]:
    """With the numbers under which listeners heard of the pictures, and will of the end."""
    numbers = {str(image): number for image, number in log.painted.items()}
    events = {**numbers, "end": log.last + 1}
    return {**(record.answer or {}), "timing": timing or {}, "events": events}


def _seed(record: Generation, image: int) -> int:
    first: int = record.request.get("seed", 0)
    return (first + image) % SEEDS


def _error(told: Mapping[str, Any]) -> PPDError:
    return _classes().get(told["type"], GenerationFailed)(told["detail"])


def _classes(cls: type[PPDError] = PPDError) -> dict[str, type[PPDError]]:
    found = {cls.type: cls}
    for sub in cls.__subclasses__():
        found |= _classes(sub)
    return found
