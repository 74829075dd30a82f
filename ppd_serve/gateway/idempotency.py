"""The end of what an idempotency key began, whatever the database does just then.

A key that nobody ends answers "still running" for as long as this process lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from ppd_serve.errors import Unavailable
from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.storage.store import Idempotency, Store

RETRY_SECONDS = 0.5
log = logging.getLogger(__name__)


class IdempotencyKeys:
    def __init__(self, store: Store, db: Threads, tasks: Tasks) -> None:
        self._store, self._db, self._tasks = store, db, tasks

    async def once(
        self,
        project: str,
        idempotency: Idempotency,
        work: Callable[[], Awaitable[dict[str, Any]]],
        users: Iterable[str] = (),
    ) -> dict[str, Any]:
        """The answer of ``work``, or the one that an earlier call with the same key and body had.
        ``users``: who takes it along when they are deleted."""
        try:
            answer = await self._db(self._store.begin_idempotent, project, idempotency, users)
        except Unavailable:  # the connection may have broken after the commit
            await self.release(project, idempotency)
            raise
        if answer is not None:
            return answer
        try:
            answer = await work()
        except BaseException:
            await self.release(project, idempotency)
            raise
        await self.keep(project, idempotency, answer)
        return answer

    async def keep(self, project: str, idempotency: Idempotency, answer: Mapping[str, Any]) -> None:
        """Keep the answer for the key's next call; while the database is away, a little later."""
        try:
            await self._end(lambda: self._store.finish_idempotent(project, idempotency, answer))
        except Exception:
            log.exception("an answer can't be kept")
            await self.release(project, idempotency)

    async def release(self, project: str, idempotency: Idempotency) -> None:
        """There is no answer: the key's next call does the work."""
        await self._end(lambda: self._store.release_idempotent(project, idempotency))

    async def _end(self, end: Callable[[], object]) -> None:
        try:
            await self._db(end)
        except Unavailable as error:
            log.warning("a key's end is not recorded yet: %r", error)
            self._tasks.start(self._end_later(end))

    async def _end_later(self, end: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._db(end)
                return
            except Unavailable:
                pass
