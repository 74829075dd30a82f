"""Drawings as callers see them: begun, joined by their key, listened to, looked up, stopped."""

from __future__ import annotations

import asyncio
import logging

from ppd_serve.api.events import PREVIEWS, Done, Drawn, Event, Failed, Format
from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.schemas import ReleaseOut
from ppd_serve.api.services import Recorded, Watched
from ppd_serve.api.usage import Slot
from ppd_serve.errors import Cancelled, Gone, InvalidInput, PPDError
from ppd_serve.gateway.closing import Closing
from ppd_serve.gateway.drawing import Drawing, Easel, as_ours
from ppd_serve.gateway.event_log import EventListener, EventLog
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.ports import DiffuserPort
from ppd_serve.gateway.records import Records, drawn, entries, recorded
from ppd_serve.gateway.running import Job, Tasks, Threads
from ppd_serve.storage.store import Generation, Idempotency, Store
from ppd_serve.storage.values import UNFINISHED

CANCEL_SECONDS = 1.0
ELSEWHERE_SECONDS = 1.0  # how often we look what another process has drawn
log = logging.getLogger(__name__)


class DrawingService:
    def __init__(
        self,
        store: Store,
        db: Threads,
        tasks: Tasks,
        idempotency_keys: IdempotencyKeys,
        easel: Easel,
        records: Records,
        diffuser: DiffuserPort,
        release: ReleaseOut,
        closing: Closing,
    ) -> None:
        self._store, self._db, self._tasks = store, db, tasks
        self._idempotency, self._easel, self._records = idempotency_keys, easel, records
        self._diffuser, self._release, self._closing = diffuser, release, closing
        self._keyed: dict[tuple[str, Idempotency], Drawing] = {}

    async def draw(
        self,
        project: str,
        body: GenerateIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Drawn:
        _, listener = self._begin(project, body, idempotency, slot, previews=None)
        try:
            async for _, event in listener:
                if isinstance(event, Done):
                    return event.drawn
                if isinstance(event, Failed):
                    raise event.error
            raise AssertionError("a log without an end")
        finally:
            listener.close()

    async def stream(
        self,
        project: str,
        body: GenerateIn,
        idempotency: Idempotency | None,
        previews: int,
        slot: Slot | None = None,
    ) -> Watched:
        drawing, listener = self._begin(project, body, idempotency, slot, previews)
        try:
            return await _accepted(drawing, listener)
        except BaseException:
            listener.close()
            raise

    async def submit(
        self,
        project: str,
        body: GenerateIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Recorded:
        drawing, listener = self._begin(project, body, idempotency, slot, PREVIEWS, kept=True)
        try:
            watched = await _accepted(drawing, listener)
        finally:
            listener.close()
        return await self.get(project, watched.id)

    async def get(self, project: str, generation_id: str) -> Recorded:
        return recorded(await self._records.get(project, generation_id))

    async def events(self, project: str, generation_id: str, after: int) -> Watched:
        drawing = self._easel.live.get((project, generation_id))
        if drawing is not None:
            return _watched(drawing, drawing.log.listen(after))
        record = await self._records.get(project, generation_id)
        job = Job()
        log = EventLog(deserted=lambda: job.stop(Cancelled()))
        listener = log.listen(after)
        if record.state in UNFINISHED:
            self._tasks.start(job.run(self._await_end(project, generation_id, log, after)))
        else:
            _tell(log, record, after)
        return Watched(
            generation_id,
            recorded(record).users,
            record.request.get("response_format", "b64_json"),
            listener,
        )

    async def cancel(self, project: str, generation_id: str) -> Recorded:
        drawing = self._easel.live.get((project, generation_id))
        if drawing is None:
            await self._records.cancel(project, generation_id)
        else:
            drawing.job.stop(Cancelled())
            try:
                async with asyncio.timeout(CANCEL_SECONDS):
                    while not drawing.log.ended:
                        await drawing.log.grown()
            except TimeoutError:
                pass  # it is on its way
        return await self.get(project, generation_id)

    async def encode(self, png: bytes, format: Format) -> bytes:
        return png if format == "png" else await self._diffuser.encode(png, format)

    def _begin(
        self,
        project: str,
        body: GenerateIn,
        idempotency: Idempotency | None,
        slot: Slot | None,
        previews: int | None,
        kept: bool = False,
    ) -> tuple[Drawing, EventListener]:
        """A drawing and somebody who listens. The same key and body share one, which goes on
        without its callers."""
        size = self._size(body)
        drawing = self._keyed.get((project, idempotency)) if idempotency else None
        if drawing is not None:
            return drawing, drawing.log.listen()
        self._closing.check()
        kept = kept or idempotency is not None
        drawing = Drawing(body, size, kept=kept, previews=previews)
        listener = drawing.log.listen()
        if idempotency is not None:
            self._keyed[project, idempotency] = drawing
        slot = slot or Slot()
        slot.hold()
        self._closing.add(self._tasks.start(self._run(project, drawing, idempotency, slot)))
        return drawing, listener

    async def _run(
        self, project: str, drawing: Drawing, idempotency: Idempotency | None, slot: Slot
    ) -> None:
        end: Event
        try:
            if idempotency is None:
                end = Done(await self._easel.draw(project, drawing))
            else:
                end = Done(await self._draw_once(project, drawing, idempotency))
        except BaseException as error:
            told = as_ours(error)
            end = Failed(told)
            if told.status == 500:
                bug = None if isinstance(error, PPDError) else error
                log.error("a drawing failed: %s", told, exc_info=bug)
            if not isinstance(error, Exception):
                raise
        finally:
            if idempotency is not None:
                del self._keyed[project, idempotency]
            slot.release()  # first: who hears of the end may draw again
            drawing.log.append(end)

    async def _draw_once(self, project: str, drawing: Drawing, idempotency: Idempotency) -> Drawn:
        fresh: list[Drawn] = []

        async def draw() -> dict[str, str]:
            fresh.append(await self._easel.draw(project, drawing))
            return {"id": fresh[0].id}

        names = {user.user_id for user in drawing.body.wanted if user.user_id is not None}
        answer = await self._idempotency.once(project, idempotency, draw, names)
        return fresh[0] if fresh else await self._again(project, drawing, answer["id"])

    async def _again(self, project: str, drawing: Drawing, generation_id: str) -> Drawn:
        """What was drawn for this key before. Raises Gone if a picture of it was deleted since."""
        record = await self._records.get(project, generation_id)
        if len(record.image_ids) < drawing.body.n:
            raise Gone("What was drawn for this Idempotency-Key has been deleted since")
        *pictures, _ = entries(record, 0)
        for number, painted in pictures:
            drawing.log.append(painted, number)
        told = recorded(record)
        drawing.id, drawing.users = generation_id, told.users
        return drawn(told)

    async def _await_end(self, project: str, generation_id: str, log: EventLog, after: int) -> None:
        try:
            while True:
                record = await self._records.get(project, generation_id)
                if record.state not in UNFINISHED:
                    _tell(log, record, after)
                    return
                await asyncio.sleep(ELSEWHERE_SECONDS)
        except PPDError as error:
            log.append(Failed(error), max(after, log.last) + 1)

    def _size(self, body: GenerateIn) -> tuple[int, int]:
        for width, height in self._release.sizes:
            if body.width in (None, width) and body.height in (None, height):
                return width, height
        widths = [width for width, _ in self._release.sizes]
        field = "height" if body.width in (None, *widths) else "width"
        raise InvalidInput("Not a size of this release, see /releases", field=field)


async def _accepted(drawing: Drawing, listener: EventListener) -> Watched:
    """Once the engine has it, or has drawn it before. Raises what was in the way."""
    first = await listener.first()
    if first is not None and isinstance(first.event, Failed):
        raise first.event.error
    return _watched(drawing, listener)


def _watched(drawing: Drawing, listener: EventListener) -> Watched:
    assert drawing.id is not None
    return Watched(drawing.id, drawing.users, drawing.body.response_format, listener)


def _tell(log: EventLog, record: Generation, after: int) -> None:
    for number, event in entries(record, after):
        log.append(event, number)
