"""Uploads and pictures by id."""

from __future__ import annotations

from ppd_serve.api.images import check_image
from ppd_serve.gateway.running import Threads
from ppd_serve.storage.store import Store


class ImageService:
    def __init__(self, store: Store, db: Threads, decoders: Threads) -> None:
        self._store, self._db, self._decoders = store, db, decoders

    async def add(self, project: str, data: bytes) -> str:
        checked = await self._decoders(check_image, data, "body")
        return (await self._db(self._store.add_image, project, checked)).image_id

    async def read(self, project: str, image_id: str) -> tuple[bytes, str]:
        image, data = await self._db(self._store.read_image, project, image_id)
        return data, image.media_type

    async def delete(self, project: str, image_id: str) -> None:
        await self._db(self._store.delete_image, project, image_id)
