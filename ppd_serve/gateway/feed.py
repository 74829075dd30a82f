"""Keeps the user index up with the database, whatever becomes of the index."""

from __future__ import annotations

import asyncio
import logging

from ppd_serve.errors import Unavailable
from ppd_serve.gateway.ports import IndexPort, IndexRow
from ppd_serve.gateway.running import Threads
from ppd_serve.storage.store import Change, Store
from ppd_serve.storage.values import index_id

BATCH = 1000
log = logging.getLogger(__name__)


class Feed:
    """Sends the index the changes it has not seen, in order. An index that was restarted says so
    by standing elsewhere, and is fed from there; one whose file belongs to another database, or is
    ahead of this one (which was restored to an earlier state), starts over."""

    def __init__(self, store: Store, db: Threads, index: IndexPort, space: str) -> None:
        self._store, self._db, self._index, self._space = store, db, index, space
        self._lock = asyncio.Lock()
        self._source: str | None = None
        self._at = 0
        self.trouble: str | None = "not loaded yet"

    async def sync(self) -> None:
        """Return when the index has seen everything committed before the call."""
        async with self._lock:
            try:
                while await self._step():
                    pass
            except BaseException:
                self.trouble = "behind the database"
                raise
            self.trouble = None

    async def try_to_sync(self, seconds: float = 2.0) -> None:
        """``sync``, except that it is nobody's problem if the index is away: it catches up later,
        and readers fall back to the database meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self.sync()
        except Exception as error:
            log.warning("the index will catch up later: %r", error)

    async def must_sync(self, seconds: float = 10.0) -> None:
        """``sync`` for who has promised that something is gone. Raises ``Unavailable``."""
        try:
            async with asyncio.timeout(seconds):
                await self.sync()
        except Exception as error:
            log.warning("the index has not followed a deletion yet: %r", error)
            raise Unavailable(
                "Deleted, but the index does not know it yet: repeat the call"
            ) from error

    async def _step(self) -> bool:
        """One batch; false when there was nothing to send and the index stood where we thought."""
        before = self._at
        if self._source is None:
            self._source = await self._db(self._store.database_id)
        source = self._source
        changes = await self._db(self._store.changes, self._space, before, BATCH)
        aim = changes[-1].sequence if changes else before
        self._at = await self._index.apply(source, before, [_row(change) for change in changes])
        if self._at > aim and self._at > await self._db(self._store.sequence):
            self._at = await self._index.apply(source, -1, [])
        return bool(changes) or self._at != before


def _row(change: Change) -> IndexRow:
    name = index_id(change.project, change.incarnation)
    if change.embedding is None:
        return IndexRow(change.sequence, name, 0, None)
    return IndexRow(change.sequence, name, change.embedding.version, change.embedding.values)
