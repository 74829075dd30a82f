"""From pairs to an embedding that can be drawn with: one encode per user at a time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import numpy as np

from ppd_serve.errors import EncoderUnavailable, NotFound, PPDError
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.ports import EncoderPort, IndexPort
from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.storage.store import Store
from ppd_serve.storage.values import UserKey, index_id

RETRY_SECONDS = (0, 1, 2, 4, 8, 15, 30, 60, 60, 60, 60)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taste:
    """What is known of a user's taste at a version; ``values`` is None when there are no pairs."""

    incarnation: str
    version: int
    values: np.ndarray | None
    pairs_used: int
    profile: str | None = None


class Tastes:
    """``wait``: seconds that anybody waits for the encoder."""

    def __init__(
        self,
        store: Store,
        db: Threads,
        tasks: Tasks,
        encoder: EncoderPort,
        index: IndexPort,
        feed: Feed,
        space: str,
        wait: float,
    ) -> None:
        self._store, self._db, self._tasks = store, db, tasks
        self._encoder, self._index, self._feed = encoder, index, feed
        self.space, self._wait = space, wait
        self._running: dict[tuple[str, str], asyncio.Task[Taste]] = {}
        self._retrying: set[tuple[str, str]] = set()

    async def read(self, project: str, user_id: str, incarnation: str, version: int) -> Taste:
        """Encode until ``version`` is read, with whoever else wants that. Raises
        ``EncoderUnavailable`` when the encoder is down or slow (a slow encode goes on)."""
        try:
            async with asyncio.timeout(self._wait):
                return await self._read(project, user_id, incarnation, version)
        except TimeoutError:
            raise EncoderUnavailable(
                "The encoder is still reading this user's pairs", retry_after=2
            ) from None

    async def _read(self, project: str, user_id: str, incarnation: str, version: int) -> Taste:
        who = (project, user_id)
        while True:
            task = self._running.get(who)
            if task is None or task.done():
                task = self._tasks.start(self._encode(project, user_id))
                self._running[who] = task
                task.add_done_callback(lambda ended: self._forget(who, ended))
            taste = await asyncio.shield(task)
            if taste.incarnation != incarnation:
                raise NotFound("This user was deleted")
            if taste.version >= version:
                return taste
            # That encode had begun before our pairs came; all who wait here share the next one.

    def _forget(self, who: tuple[str, str], ended: asyncio.Task[Taste]) -> None:
        if self._running.get(who) is ended:
            del self._running[who]

    async def _encode(self, project: str, user_id: str) -> Taste:
        loaded = await self._db(self._store.load_pairs, project, user_id)
        if not loaded.pairs:
            return Taste(loaded.incarnation, loaded.version, None, 0)
        try:
            values, profile = await self._encoder.embed(loaded.pairs)
        except Exception as error:
            log.warning("the encoder failed: %r", error)
            raise EncoderUnavailable(retry_after=2) from error
        used = len(loaded.pairs)
        stored = await self._db(
            self._store.put_embedding, project, user_id, loaded.incarnation, loaded.version,
            self.space, values, used, profile,
        )  # fmt: skip
        if stored:
            await self._feed.try_to_sync()
        return Taste(loaded.incarnation, loaded.version, values, used, profile)

    def read_later(self, project: str, user_id: str, incarnation: str, version: int) -> None:
        """Read in the background, now and, should the encoder fail, now and then."""
        who = (project, user_id)
        if who not in self._retrying:
            self._retrying.add(who)
            self._tasks.start(self._keep_trying(project, user_id, incarnation, version))

    async def _keep_trying(
        self, project: str, user_id: str, incarnation: str, version: int
    ) -> None:
        try:
            for seconds in RETRY_SECONDS:
                await asyncio.sleep(seconds)
                try:
                    await self._read(project, user_id, incarnation, version)
                    return
                except NotFound:
                    return
                except PPDError as error:
                    log.warning("a user's pairs are still unread: %r", error)
        finally:
            self._retrying.discard((project, user_id))

    async def current(self, project: str, user_id: str, key: UserKey) -> Taste:
        """The taste at ``key.version``: from the index, else the database, else the encoder."""
        if key.pairs_total == 0:
            return Taste(key.incarnation, key.version, None, 0)
        if key.embedding_version == key.version:
            found = await self._cached(index_id(project, key.incarnation))
            if found is not None and found[0] == key.version:
                return Taste(key.incarnation, key.version, found[1], key.pairs_total)
            stored = await self._db(self._store.get_embedding, project, user_id, self.space)
            if stored is not None and stored.incarnation == key.incarnation:
                return Taste(key.incarnation, stored.version, stored.values, stored.pairs_used)
        return await self.read(project, user_id, key.incarnation, key.version)

    async def _cached(self, name: str) -> tuple[int, np.ndarray] | None:
        try:
            async with asyncio.timeout(1.0):
                return await self._index.get(name)
        except (PPDError, TimeoutError):
            return None
