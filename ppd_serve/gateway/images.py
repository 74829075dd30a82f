"""Uploads and pictures by id."""

from __future__ import annotations

from ppd_serve.api.images import check_image
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.storage.store import Idempotency, Store


class ImageService:
    def __init__(
        self,
        store: Store,
        db: Threads,
        decoders: Threads,
        tasks: Tasks,
        idempotency_keys: IdempotencyKeys,
    ) -> None:
        self._store, self._db, self._decoders, self._tasks = store, db, decoders, tasks
        self._idempotency = idempotency_keys

    async def add(self, project: str, data: bytes, idempotency: Idempotency | None) -> str:
        checked = await self._decoders(check_image, data, "body")

        async def store() -> dict[str, str]:
            return {"image_id": (await self._db(self._store.add_image, project, checked)).image_id}

        if idempotency is None:
            return (await store())["image_id"]
        once = self._idempotency.once(project, idempotency, store)
        image_id: str = (await self._tasks.run(once))["image_id"]
        return image_id

    async def read(self, project: str, image_id: str) -> tuple[bytes, str]:
        image, data = await self._db(self._store.read_image, project, image_id)
        return data, image.media_type

    async def delete(self, project: str, image_id: str) -> None:
        await self._db(self._store.delete_image, project, image_id)
