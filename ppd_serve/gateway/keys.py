"""The stored API keys, as this gateway knows them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.keys import ApiKey
from ppd_serve.storage.store import Store

FRESH_SECONDS = 2.0


class KnownKeys:
    """``ppd_serve.api.auth.Keys`` on the store. All keys are read again after ``FRESH_SECONDS``:
    as soon as that, a new one opens and a revoked one doesn't. While they can't be read nobody is
    let in on what was true earlier."""

    def __init__(
        self,
        store: Store,
        db: Threads,
        tasks: Tasks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._db, self._tasks, self._clock = store, db, tasks, clock
        self._known: Mapping[str, ApiKey] = {}
        self._fresh_until = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def known(self) -> Mapping[str, ApiKey]:
        if self._clock() >= self._fresh_until:
            if self._reading is None or self._reading.done():
                self._reading = self._tasks.start(self._read())
            await asyncio.shield(self._reading)  # many wait for one, and share its failure
        return self._known

    async def _read(self) -> None:
        now = self._clock()
        self._known = await self._db(self._store.keys)
        self._fresh_until = now + FRESH_SECONDS
