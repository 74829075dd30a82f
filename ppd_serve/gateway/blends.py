"""Who is asked for in a drawing, by name or by taste code, and what is known of their tastes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppd_serve.api.generation_schemas import GenerateIn, UserUsed, UserWeight
from ppd_serve.errors import Conflict, NotFound
from ppd_serve.gateway.running import Threads
from ppd_serve.gateway.tastes import Taste, Tastes
from ppd_serve.storage.store import Store, TasteCode, UserKey


@dataclass(frozen=True)
class Blend:
    """Everybody who is asked for, as they were found: users by id, taste codes by code."""

    keys: Mapping[str, UserKey]
    codes: Mapping[str, TasteCode]

    @property
    def incarnations(self) -> dict[str, str]:
        return {user_id: key.incarnation for user_id, key in self.keys.items()}


class Blends:
    def __init__(self, store: Store, db: Threads, tastes: Tastes) -> None:
        self._store, self._db, self._tastes = store, db, tastes

    async def found(self, project: str, body: GenerateIn) -> Blend:
        """Raises ``NotFound`` naming the field."""
        names = {user.user_id for user in body.wanted if user.user_id is not None}
        shared = {user.taste_code for user in body.wanted if user.taste_code is not None}
        keys = await self._keys(project, names) if names else {}
        codes = await self._db(self._store.taste_codes, project, shared) if shared else {}
        for number, user in enumerate(body.wanted):
            if user.user_id is not None and user.user_id not in keys:
                raise NotFound("No such user", field=_field(body, number, "user_id"))
            if user.taste_code is not None and user.taste_code not in codes:
                raise NotFound("No such taste code", field=_field(body, number, "taste_code"))
        return Blend(keys, codes)

    async def _keys(self, project: str, names: set[str]) -> dict[str, UserKey]:
        return await self._db(self._store.user_keys, project, names, self._tastes.space)

    async def tastes(self, project: str, body: GenerateIn, blend: Blend) -> Sequence[Taste]:
        """In the order of ``body.wanted``. Raises ``Conflict`` naming the field for a version that
        is not kept."""

        async def taste(number: int, user: UserWeight) -> Taste:
            version, found = await self._taste(project, body, blend, user)
            if found is None:
                field = "version" if user.taste_code is None else "taste_code"
                raise Conflict(
                    f"No embedding of version {version} is kept that this release reads",
                    field=_field(body, number, field),
                )
            return found

        return await asyncio.gather(*(taste(n, user) for n, user in enumerate(body.wanted)))

    async def _taste(
        self, project: str, body: GenerateIn, blend: Blend, user: UserWeight
    ) -> tuple[int, Taste | None]:
        """The version that is asked for, and the taste at it if that can be had."""
        has_a_say = 0 not in (user.weight, body.preference_scale)  # else: the base picture
        if user.taste_code is not None:
            code = blend.codes[user.taste_code]
            owner, incarnation, version = code.user_id, code.incarnation, code.version
        else:
            assert user.user_id is not None
            key = blend.keys[user.user_id]
            owner, incarnation = user.user_id, key.incarnation
            version = key.version if user.version is None else user.version
            if version == key.version:
                if not has_a_say:
                    return version, Taste(version, None, 0)
                newest = await self._tastes.current(project, owner, key)
                if user.version is None or newest.version == version:
                    return version, newest
        found = await self._tastes.at(project, owner, incarnation, version)
        return version, found if has_a_say or found is None else Taste(version, None, 0)


def _field(body: GenerateIn, number: int, name: str) -> str:
    return name if body.user_id is not None else f"users.{number}.{name}"


def used(user: UserWeight, taste: Taste) -> UserUsed:
    """What is answered about a user who was asked for."""
    personal = taste.values is not None
    return UserUsed(
        user_id=user.user_id,
        taste_code=None if user.taste_code is None else masked(user.taste_code),
        weight=user.weight,
        personalized=personal,
        version=taste.version if personal else None,
        pairs_used=taste.pairs_used,
    )


def masked(code: str) -> str:
    """Enough to tell the codes of a blend apart, too little to draw with."""
    return f"…{code[-6:]}"
