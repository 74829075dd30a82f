"""One generation while it runs, from the first look at its users to its last picture."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager

from ppd_serve.api.events import Drawn, Preview, Queued, Step
from ppd_serve.api.generation_schemas import GenerateIn, UserUsed
from ppd_serve.errors import Cancelled, GenerationFailed, Interrupted, PPDError
from ppd_serve.gateway.blends import Blends, used
from ppd_serve.gateway.event_log import EventLog
from ppd_serve.gateway.full import Full
from ppd_serve.gateway.ports import DiffuserPort, DrawEvent, DrawRequest, Finished
from ppd_serve.gateway.records import SEEDS, Records
from ppd_serve.gateway.running import Job, Jobs
from ppd_serve.gateway.tastes import Taste
from ppd_serve.meters import Meters
from ppd_serve.storage.store import Generation, GenerationState


class Drawing:
    """What is wanted, its log, and the means to stop it.

    kept: it goes on when nobody listens. previews: how many of each picture; None: nobody watches.
    id: None until the engine has it.
    """

    def __init__(
        self, body: GenerateIn, size: tuple[int, int], *, kept: bool, previews: int | None
    ) -> None:
        self.body, self.size, self.previews = body, size, previews
        self.id: str | None = None
        self.users: Sequence[UserUsed] = []
        self.job = Job()
        self.log = EventLog(deserted=lambda: None if kept else self.job.stop(Cancelled()))

    def request(self, seed: int, tastes: Sequence[Taste]) -> DrawRequest:
        body = self.body
        interval = body.guidance_interval
        return DrawRequest(
            prompt=body.prompt,
            negative_prompt=body.negative_prompt,
            seeds=[(seed + number) % SEEDS for number in range(body.n)],
            width=self.size[0],
            height=self.size[1],
            steps=body.steps,
            guidance_scale=body.guidance_scale,
            sampler=body.sampler,
            preference_scale=body.preference_scale,
            users=[
                (taste.values, user.weight)
                for user, taste in zip(body.wanted, tastes, strict=True)
                if taste.values is not None
            ],
            watched=self.previews is not None,
            previews=self.previews or 0,
            guidance_interval=None if interval is None else (interval[0], interval[1]),
        )


class Easel:
    """Where drawings are made; ``live`` are those that the engine has, by project and id."""

    def __init__(
        self,
        jobs: Jobs,
        blends: Blends,
        records: Records,
        diffuser: DiffuserPort,
        release: str,
        meters: Meters,
        full: Full,
    ) -> None:
        self._jobs, self._blends, self._records = jobs, blends, records
        self._diffuser, self._release, self._meters = diffuser, release, meters
        self._full = full
        self.live: dict[tuple[str, str], Drawing] = {}

    async def draw(self, project: str, drawing: Drawing) -> Drawn:
        """Everything but the end is told in the drawing's log."""
        stages, state = Stages(), "done"
        try:
            return await self._draw(project, drawing, stages)
        except BaseException as error:
            state = "cancelled" if isinstance(error, Cancelled) else "failed"
            if drawing.id is None and state == "failed":
                state = "refused"
            raise
        finally:
            self._meters.generations.labels(state).observe(stages.total)

    async def _draw(self, project: str, drawing: Drawing, stages: Stages) -> Drawn:
        body = drawing.body
        self._full.check(body.n)
        blend = await self._blends.found(project, body)
        with self._jobs.running(drawing.job, project, blend.incarnations, blend.codes):
            with stages("taste"):
                tastes = await drawing.job.run(self._blends.tastes(project, body, blend))
            drawing.users = list(map(used, body.wanted, tastes))
            seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed
            events = self._diffuser.draw(drawing.request(seed, tastes))
            try:
                with stages("draw"), self._full.learning(body.n):
                    first = await drawing.job.run(_next(events))
                # No record before the engine has it: what it refuses must cost nothing.
                state: GenerationState = "running" if _is_running(first) else "queued"
                record = await self._records.begin(project, body, seed, blend, drawing.users, state)
                return await self._follow(project, drawing, record, first, events, stages)
            finally:
                await events.aclose()

    async def _follow(
        self,
        project: str,
        drawing: Drawing,
        record: Generation,
        event: DrawEvent | None,
        events: AsyncGenerator[DrawEvent, None],
        stages: Stages,
    ) -> Drawn:
        drawing.id = record.generation_id
        self.live[project, drawing.id] = drawing
        images, running, previewed = [], record.state == "running", False
        try:
            while event is not None:
                if isinstance(event, Finished):
                    with stages("store"):
                        painted = await self._records.keep(
                            project, record, event.image, event.png, drawing.size
                        )
                    images.append(painted)
                    drawing.log.append(painted)
                else:
                    if not running and _is_running(event):
                        running = True
                        await self._records.is_running(project, drawing.id)
                    if isinstance(event, Preview) and not previewed:
                        previewed = True
                        self._meters.first_previews.observe(stages.total)
                    drawing.log.append(event)
                with stages("draw"):
                    event = await drawing.job.run(_next(events))
            timing = stages.seconds()
            await self._records.finish(project, record, timing, drawing.log)
        except BaseException as error:
            await events.aclose()  # its rows first
            await self._records.fail(project, record, as_ours(error), drawing.log)
            raise
        finally:
            del self.live[project, drawing.id]
        images.sort(key=lambda painted: painted.image)
        return Drawn(drawing.id, int(record.created), self._release, images, drawing.users, timing)


class Stages:
    """``with stages("name"):`` measures; a stage may come again."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds = dict.fromkeys(("taste", "draw", "store"), 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[stage] += time.monotonic() - began

    @property
    def total(self) -> float:
        return time.monotonic() - self._began

    def seconds(self) -> dict[str, float]:
        seconds = {**self._seconds, "total": self.total}
        return {stage: round(value, 4) for stage, value in seconds.items()}


def as_ours(error: BaseException) -> PPDError:
    """What is told of it."""
    if isinstance(error, PPDError):
        return error
    if isinstance(error, asyncio.CancelledError):  # by nobody's wish: the server stops
        return Interrupted()
    return GenerationFailed()


def _is_running(event: DrawEvent | None) -> bool:
    """It says that nothing is waited for any more."""
    return isinstance(event, Step) or event == Queued(0)


async def _next(events: AsyncGenerator[DrawEvent, None]) -> DrawEvent | None:
    return await anext(events, None)
