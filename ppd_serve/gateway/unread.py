"""Pairs that are committed while nobody waits for their reading any more."""

from __future__ import annotations

import asyncio
import logging
from itertools import chain, repeat

from ppd_serve.errors import NotFound
from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.gateway.tastes import Tastes
from ppd_serve.storage.store import Store

RETRY_SECONDS = (1, 2, 4, 8, 15, 30, 60)  # then every minute
AT_ONCE = 4  # each holds all pictures of a user in memory
PAGE = 100
ROUND_SECONDS, SOON_SECONDS = 3600.0, 60.0
log = logging.getLogger(__name__)


class Unread:
    """Reads them: those that this gateway hears of, at once and until it works; those that it
    doesn't (another process committed them and died) in rounds over the database."""

    def __init__(self, store: Store, db: Threads, tasks: Tasks, tastes: Tastes) -> None:
        self._store, self._db, self._tasks, self._tastes = store, db, tasks, tastes
        self._wanted: dict[str, int] = {}  # incarnation → the newest version to be read
        self._slots = asyncio.Semaphore(AT_ONCE)

    def later(self, project: str, user_id: str, incarnation: str, version: int) -> None:
        """Read this version, or a newer one, in the background."""
        before = self._wanted.get(incarnation)
        self._wanted[incarnation] = max(version, before or 0)
        if before is None:
            self._tasks.start(self._keep_trying(project, user_id, incarnation))

    async def _keep_trying(self, project: str, user_id: str, incarnation: str) -> None:
        pauses = chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1]))
        try:
            while True:
                version = self._wanted[incarnation]
                if not await self._try(project, user_id, incarnation, version):
                    await asyncio.sleep(next(pauses))
                elif version == self._wanted[incarnation]:
                    return
        finally:
            del self._wanted[incarnation]

    async def _try(self, project: str, user_id: str, incarnation: str, version: int) -> bool:
        """False when it must be tried again."""
        try:
            async with self._slots:
                keys = await self._db(self._store.user_keys, project, [user_id], self._tastes.space)
                key = keys.get(user_id)
                if (
                    key is not None
                    and key.incarnation == incarnation
                    and (key.embedding_version or 0) < version
                ):
                    await self._tastes.read_to_the_end(project, user_id, incarnation, version)
        except NotFound:
            return True  # deleted meanwhile: there is nothing left to read
        except Exception as error:
            log.warning("a user's pairs are still unread: %r", error)
            return False
        return True

    async def rounds(self) -> None:
        """Look for unread pairs for as long as the server runs."""
        while True:
            try:
                all_read = await self._round()
            except Exception as error:
                log.warning("could not look for unread pairs: %r", error)
                all_read = False
            await asyncio.sleep(ROUND_SECONDS if all_read else SOON_SECONDS)

    async def _round(self) -> bool:
        """One user after the other, so that who waits for the encoder is soon next."""
        all_read, after = True, ("", "")
        while page := await self._db(self._store.unread_users, self._tastes.space, after, PAGE):
            for user in page:
                after = user.project, user.user_id
                if user.incarnation in self._wanted:
                    continue
                if not await self._try(*after, user.incarnation, user.version):
                    all_read = False
                    await asyncio.sleep(RETRY_SECONDS[0])
        return all_read
