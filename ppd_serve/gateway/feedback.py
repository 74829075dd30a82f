"""Likes and dislikes of pictures that were drawn here."""

from __future__ import annotations

from ppd_serve.api.loop_schemas import FeedbackIn, FeedbackOut
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.storage.store import Idempotency, Store


class FeedbackService:
    def __init__(
        self, store: Store, db: Threads, tasks: Tasks, idempotency_keys: IdempotencyKeys
    ) -> None:
        self._store, self._db, self._tasks = store, db, tasks
        self._idempotency = idempotency_keys

    async def put(
        self, project: str, user_id: str, body: FeedbackIn, idempotency: Idempotency | None
    ) -> FeedbackOut:
        async def store() -> dict[str, object]:
            kept = await self._db(
                self._store.put_feedback, project, user_id, body.image_id, body.liked
            )
            told = FeedbackOut(
                feedback_id=kept.feedback_id, image_id=kept.image_id, liked=kept.liked
            )
            return told.model_dump()

        if idempotency is None:
            return FeedbackOut.model_validate(await self._tasks.run(store()))
        once = self._idempotency.once(project, idempotency, store, [user_id])
        return FeedbackOut.model_validate(await self._tasks.run(once))

    async def delete(self, project: str, user_id: str, feedback_id: str) -> None:
        await self._db(self._store.delete_feedback, project, user_id, feedback_id)
