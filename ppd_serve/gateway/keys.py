"""The stored API keys, as this gateway knows them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from ppd_serve.gateway.running import Threads
from ppd_serve.keys import ApiKey
from ppd_serve.storage.store import Store

FRESH_SECONDS = 2.0


class KnownKeys:
    """``ppd_serve.api.auth.Keys`` on the store. All keys are read again after ``FRESH_SECONDS``:
    as soon as that, a new one opens and a revoked one doesn't. While they can't be read nobody is
    let in on what was true earlier."""

    def __init__(
        self, store: Store, db: Threads, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._db, self._clock = store, db, clock
        self._known: Mapping[str, ApiKey] = {}
        self._fresh_until = float("-inf")
        self._reading = asyncio.Lock()

    async def known(self) -> Mapping[str, ApiKey]:
        async with self._reading:  # many wait for one
            if (now := self._clock()) >= self._fresh_until:
                self._known = await self._db(self._store.keys)
                self._fresh_until = now + FRESH_SECONDS
        return self._known
