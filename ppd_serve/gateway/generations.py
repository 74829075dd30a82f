"""From a request to kept pictures: who, their taste, the drawing, the record."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from ppd_serve.api.schemas import GenerateIn, ReleaseOut, UserUsed, UserWeight
from ppd_serve.api.services import Drawn
from ppd_serve.errors import (
    Cancelled,
    Conflict,
    GenerationFailed,
    InvalidInput,
    NotFound,
    PPDError,
    Unavailable,
)
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.ports import DiffuserPort, DrawRequest
from ppd_serve.gateway.running import Job, Jobs, Tasks, Threads
from ppd_serve.gateway.tastes import Taste, Tastes
from ppd_serve.storage.store import Generation, Idempotency, NewImage, Store, UserKey

log = logging.getLogger(__name__)


class DrawingService:
    def __init__(
        self,
        store: Store,
        db: Threads,
        tasks: Tasks,
        jobs: Jobs,
        idempotency_keys: IdempotencyKeys,
        tastes: Tastes,
        diffuser: DiffuserPort,
        release: ReleaseOut,
    ) -> None:
        self._store, self._db, self._tasks = store, db, tasks
        self._jobs, self._idempotency = jobs, idempotency_keys
        self._tastes, self._diffuser, self._release = tastes, diffuser, release
        self._keyed: dict[tuple[str, Idempotency], asyncio.Task[Drawn]] = {}

    async def draw(self, project: str, body: GenerateIn, idempotency: Idempotency | None) -> Drawn:
        size = self._size(body)
        if idempotency is not None:
            return await self._join(project, body, size, idempotency)
        job = Job()
        try:
            return await self._tasks.run(self._draw(project, body, size, job))
        except asyncio.CancelledError:
            job.stop(Cancelled())
            raise

    async def _join(
        self, project: str, body: GenerateIn, size: tuple[int, int], idempotency: Idempotency
    ) -> Drawn:
        """The same key and body share one drawing, which goes on without its callers."""
        same = (project, idempotency)
        task = self._keyed.get(same)
        if task is None:
            task = self._tasks.start(self._draw_once(project, body, size, idempotency))
            self._keyed[same] = task
            task.add_done_callback(lambda _: self._keyed.pop(same, None))
        return await asyncio.shield(task)

    async def _draw_once(
        self, project: str, body: GenerateIn, size: tuple[int, int], idempotency: Idempotency
    ) -> Drawn:
        names = {user.user_id for user in body.wanted}
        try:
            answer = await self._db(self._store.begin_idempotent, project, idempotency, names)
        except Unavailable:  # the connection may have broken after the commit
            await self._idempotency.release(project, idempotency)
            raise
        if answer is not None:
            return _from_answer(answer)
        try:
            drawn = await self._draw(project, body, size, Job())
        except BaseException:
            await self._idempotency.release(project, idempotency)
            raise
        await self._idempotency.keep(project, idempotency, _to_answer(drawn))
        return drawn

    async def _draw(self, project: str, body: GenerateIn, size: tuple[int, int], job: Job) -> Drawn:
        keys = await self._keys(project, body)
        users = {user_id: key.incarnation for user_id, key in keys.items()}
        with self._jobs.running(job, project, users):
            return await self._draw_for(project, body, keys, size, job)

    async def _draw_for(
        self,
        project: str,
        body: GenerateIn,
        keys: dict[str, UserKey],
        size: tuple[int, int],
        job: Job,
    ) -> Drawn:
        began = time.monotonic()
        wanted = body.wanted
        tastes = await job.run(self._tastes_of(project, body, keys))
        read = time.monotonic()
        record = await self._db(
            self._store.create_generation,
            project,
            body.model_dump(exclude_none=True),
            {user.user_id: keys[user.user_id].incarnation for user in wanted},
        )
        try:
            seeds = _seeds(body)
            pngs = await job.run(self._diffuser.draw(_request(body, seeds, size, tastes)))
            drawn = time.monotonic()
            kept = await self._keep(project, record, pngs, size)
        except BaseException as error:
            await self._fail(project, record, error)
            raise
        ended = time.monotonic()
        timing = {
            "taste": read - began, "draw": drawn - read, "store": ended - drawn,
            "total": ended - began,
        }  # fmt: skip
        return Drawn(
            id=record.generation_id,
            created=int(record.created),
            release=self._release.name,
            images=list(zip(kept, seeds, strict=True)),
            users=[_used(user, taste) for user, taste in zip(wanted, tastes, strict=True)],
            timing={stage: round(seconds, 4) for stage, seconds in timing.items()},
            pngs=dict(zip(kept, pngs, strict=True)),
        )

    def _size(self, body: GenerateIn) -> tuple[int, int]:
        for width, height in self._release.sizes:
            if body.width in (None, width) and body.height in (None, height):
                return width, height
        widths = [width for width, _ in self._release.sizes]
        field = "height" if body.width in (None, *widths) else "width"
        raise InvalidInput("Not a size of this release, see /releases", field=field)

    async def _keys(self, project: str, body: GenerateIn) -> dict[str, UserKey]:
        if not body.wanted:
            return {}
        names = [user.user_id for user in body.wanted]
        keys = await self._db(self._store.user_keys, project, names, self._tastes.space)
        for number, user in enumerate(body.wanted):
            prefix = "" if body.user_id is not None else f"users.{number}."
            if user.user_id not in keys:
                raise NotFound("No such user", field=f"{prefix}user_id")
            if user.version not in (None, keys[user.user_id].version):
                raise Conflict("The user's version is another", field=f"{prefix}version")
        return keys

    async def _tastes_of(
        self, project: str, body: GenerateIn, keys: dict[str, UserKey]
    ) -> list[Taste]:
        async def taste(user: UserWeight) -> Taste:
            key = keys[user.user_id]
            if 0 in (user.weight, body.preference_scale):  # has no say: the base picture
                return Taste(key.version, None, 0)
            return await self._tastes.current(project, user.user_id, key)

        return list(await asyncio.gather(*map(taste, body.wanted)))

    async def _keep(
        self, project: str, record: Generation, pngs: list[bytes], size: tuple[int, int]
    ) -> list[str]:
        """Image ids in order. A user deleted meanwhile took the record along: ``NotFound``."""
        kept = []
        for png in pngs:
            image = NewImage(png, "image/png", *size)
            stored = await self._db(
                self._store.add_image, project, image, "generated", record.generation_id
            )
            kept.append(stored.image_id)
        if not await self._db(self._store.set_generation, project, record.generation_id, "done"):
            raise NotFound("This user was deleted")
        return kept

    async def _fail(self, project: str, record: Generation, error: BaseException) -> None:
        known = error if isinstance(error, PPDError) else GenerationFailed()
        stopped = isinstance(error, Cancelled | asyncio.CancelledError)
        try:
            await self._db(
                self._store.set_generation,
                project,
                record.generation_id,
                "cancelled" if stopped else "failed",
                {"type": known.type, "detail": known.detail},
            )
        except PPDError as trouble:
            log.warning("a generation's end was not recorded: %r", trouble)


def _seeds(body: GenerateIn) -> list[int]:
    first = secrets.randbelow(2**32) if body.seed is None else body.seed
    return [(first + number) % 2**32 for number in range(body.n)]


def _request(
    body: GenerateIn, seeds: list[int], size: tuple[int, int], tastes: list[Taste]
) -> DrawRequest:
    return DrawRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        seeds=seeds,
        width=size[0],
        height=size[1],
        steps=body.steps,
        guidance_scale=body.guidance_scale,
        sampler=body.sampler,
        preference_scale=body.preference_scale,
        users=[
            (taste.values, user.weight)
            for user, taste in zip(body.wanted, tastes, strict=True)
            if taste.values is not None
        ],
    )


def _used(user: UserWeight, taste: Taste) -> UserUsed:
    personal = taste.values is not None
    return UserUsed(
        user_id=user.user_id,
        weight=user.weight,
        personalized=personal,
        version=taste.version if personal else None,
        pairs_used=taste.pairs_used,
    )


def _to_answer(drawn: Drawn) -> dict[str, Any]:
    return {
        "id": drawn.id,
        "created": drawn.created,
        "release": drawn.release,
        "images": [list(image) for image in drawn.images],
        "users": [user.model_dump() for user in drawn.users],
        "timing": drawn.timing,
    }


def _from_answer(answer: dict[str, Any]) -> Drawn:
    images = [(image_id, seed) for image_id, seed in answer["images"]]
    users = [UserUsed.model_validate(user) for user in answer["users"]]
    return Drawn(**{**answer, "images": images, "users": users}, pngs={})
