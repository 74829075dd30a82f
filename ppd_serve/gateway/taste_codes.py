"""Taste codes: made, listed and withdrawn."""

from __future__ import annotations

from ppd_serve.api.loop_schemas import TasteCodeIn, TasteCodeOut, TasteCodesOut
from ppd_serve.errors import NotFound
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.running import Jobs, Tasks, Threads
from ppd_serve.storage.store import Idempotency, Store, TasteCode
from ppd_serve.storage.versions import WITHDRAWN


class TasteCodeService:
    def __init__(
        self,
        store: Store,
        db: Threads,
        tasks: Tasks,
        jobs: Jobs,
        idempotency_keys: IdempotencyKeys,
        space: str,
    ) -> None:
        self._store, self._db, self._tasks, self._jobs = store, db, tasks, jobs
        self._idempotency, self._space = idempotency_keys, space

    async def add(
        self, project: str, user_id: str, body: TasteCodeIn, idempotency: Idempotency | None
    ) -> TasteCodeOut:
        async def make() -> TasteCodeOut:
            stored = await self._db(
                self._store.get_embedding, project, user_id, self._space, body.version
            )
            if stored is None:
                await self._db(self._store.get_user, project, user_id)  # unknown, or just unread?
                raise NotFound(
                    "This user has no embedding yet"
                    if body.version is None
                    else "There is no embedding of this version",
                    field="version",
                )
            return told(
                await self._db(
                    self._store.add_taste_code, project, user_id, stored.incarnation, stored.version
                )
            )

        if idempotency is None:
            return await self._tasks.run(make())

        async def made() -> dict[str, object]:
            return (await make()).model_dump()

        once = self._idempotency.once(project, idempotency, made, [user_id])
        return TasteCodeOut.model_validate(await self._tasks.run(once))

    async def list(self, project: str, user_id: str) -> TasteCodesOut:
        codes = await self._db(self._store.list_taste_codes, project, user_id)
        return TasteCodesOut(taste_codes=[told(code) for code in codes])

    async def delete(self, project: str, user_id: str, code: str) -> None:
        await self._tasks.run(self._delete(project, user_id, code))

    async def _delete(self, project: str, user_id: str, code: str) -> None:
        try:
            await self._db(self._store.delete_taste_code, project, user_id, code)
        finally:  # it may also fail after its commit
            await stop_withdrawn(self._store, self._db, self._jobs, project)


async def stop_withdrawn(store: Store, db: Threads, jobs: Jobs, project: str) -> None:
    """Stop what is being drawn with a taste code that is no longer there."""
    if in_use := jobs.codes(project):
        gone = in_use - (await db(store.taste_codes, project, in_use)).keys()
        jobs.stop_codes(gone, NotFound(WITHDRAWN, field="taste_code"))


def told(code: TasteCode) -> TasteCodeOut:
    return TasteCodeOut(code=code.code, version=code.version, created=code.created)
