"""Who is asked for in a drawing, and what is known of their tastes."""

from __future__ import annotations

import asyncio

from ppd_serve.api.schemas import GenerateIn, UserUsed, UserWeight
from ppd_serve.errors import Conflict, NotFound
from ppd_serve.gateway.running import Threads
from ppd_serve.gateway.tastes import Taste, Tastes
from ppd_serve.storage.store import Store, UserKey


class Blends:
    def __init__(self, store: Store, db: Threads, tastes: Tastes) -> None:
        self._store, self._db, self._tastes = store, db, tastes

    async def keys(self, project: str, body: GenerateIn) -> dict[str, UserKey]:
        """By user id. Raises ``NotFound`` and ``Conflict`` naming the field."""
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

    async def tastes(self, project: str, body: GenerateIn, keys: dict[str, UserKey]) -> list[Taste]:
        """In the order of ``body.wanted``."""

        async def taste(user: UserWeight) -> Taste:
            key = keys[user.user_id]
            if 0 in (user.weight, body.preference_scale):  # has no say: the base picture
                return Taste(key.version, None, 0)
            return await self._tastes.current(project, user.user_id, key)

        return list(await asyncio.gather(*map(taste, body.wanted)))


def used(user: UserWeight, taste: Taste) -> UserUsed:
    """What is answered about a user who was asked for."""
    personal = taste.values is not None
    return UserUsed(
        user_id=user.user_id,
        weight=user.weight,
        personalized=personal,
        version=taste.version if personal else None,
        pairs_used=taste.pairs_used,
    )
