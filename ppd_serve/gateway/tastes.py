"""From pairs to an embedding that can be drawn with: one encode per user at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppd_serve.errors import EncoderUnavailable, NotFound, PPDError, Unsupported
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.ports import EncoderPort, IndexPort, Question, Reading
from ppd_serve.gateway.running import Job, Jobs, Tasks, Threads
from ppd_serve.meters import Meters
from ppd_serve.preferences.pairs import Pair
from ppd_serve.storage.store import Store
from ppd_serve.storage.values import UserKey, index_id

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taste:
    """What is known of a user's taste at a version; ``values`` is None when there are no pairs."""

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
        jobs: Jobs,
        encoder: EncoderPort,
        index: IndexPort,
        feed: Feed,
        space: str,
        wait: float,
        meters: Meters,
    ) -> None:
        self._store, self._db, self._tasks, self._jobs = store, db, tasks, jobs
        self._encoder, self._index, self._feed = encoder, index, feed
        self.space, self._wait, self._meters = space, wait, meters
        # By incarnation: who takes a deleted user's name does not wait for the other's reading.
        self._running: dict[str, asyncio.Task[Taste]] = {}

    async def read(self, project: str, user_id: str, incarnation: str, version: int) -> Taste:
        """``read_to_the_end``, but ``EncoderUnavailable`` if it takes long (the encode goes on)."""
        try:
            async with asyncio.timeout(self._wait):
                return await self.read_to_the_end(project, user_id, incarnation, version)
        except TimeoutError:
            raise EncoderUnavailable(
                "The encoder is still reading this user's pairs", retry_after=2
            ) from None

    async def read_to_the_end(
        self, project: str, user_id: str, incarnation: str, version: int
    ) -> Taste:
        """Encode until ``version`` is read, with whoever else wants that. Raises
        ``EncoderUnavailable`` when the encoder is down, ``NotFound`` when this incarnation of the
        user is, or is being, deleted."""
        while True:
            task = self._running.get(incarnation)
            if task is None or task.done():
                task = self._tasks.start(self._encode(project, user_id, incarnation))
                self._running[incarnation] = task
                task.add_done_callback(lambda ended: self._forget(incarnation, ended))
            taste = await asyncio.shield(task)
            if taste.version >= version:
                return taste
            # That encode had begun before our pairs came; all who wait here share the next one.

    def _forget(self, incarnation: str, ended: asyncio.Task[Taste]) -> None:
        if self._running.get(incarnation) is ended:
            del self._running[incarnation]

    async def _encode(self, project: str, user_id: str, incarnation: str) -> Taste:
        job = Job()
        with self._jobs.running(job, project, {user_id: incarnation}):
            return await job.run(self._encode_and_store(project, user_id, incarnation))

    async def _encode_and_store(self, project: str, user_id: str, incarnation: str) -> Taste:
        while True:
            loaded = await self._db(self._store.load_pairs, project, user_id)
            if loaded.incarnation != incarnation:
                raise NotFound("This user was deleted")
            if not loaded.pairs:
                return Taste(loaded.version, None, 0)
            reading = await self._embed(loaded.pairs)
            values, profile, used = reading.values, reading.profile, len(loaded.pairs)
            if await self._db(
                self._store.put_embedding, project, user_id, incarnation, loaded.version,
                self.space, values, used, profile, reading.bits,
            ):  # fmt: skip
                await self._feed.try_to_sync()
                return Taste(loaded.version, values, used, profile)
            stored = await self._db(self._store.get_embedding, project, user_id, self.space)
            if stored and stored.incarnation == incarnation and stored.version >= loaded.version:
                return Taste(stored.version, stored.values, stored.pairs_used, stored.profile)
            # Something was deleted meanwhile: what came of it is nobody's taste. Look again.

    async def _embed(self, pairs: Sequence[Pair]) -> Reading:
        began = time.monotonic()
        try:
            reading = await self._encoder.embed(pairs)
        except Exception as error:
            log.warning("the encoder failed: %r", error)
            raise EncoderUnavailable(retry_after=2) from error
        if reading.values.ndim != 2 or not np.isfinite(reading.values).all():
            log.error("the encoder made numbers %s that are no embedding", reading.values.shape)
            raise EncoderUnavailable("The encoder can't read this user's pairs", retry_after=60)
        self._meters.encodes.observe(time.monotonic() - began)
        return reading

    async def ask(self, pairs: Sequence[Pair], asked: int) -> Question:
        """What to ask next, ``asked`` questions after the last pair. Raises
        ``EncoderUnavailable``, ``Unsupported``."""
        try:
            async with asyncio.timeout(self._wait):
                return await self._encoder.ask(pairs, asked)
        except Unsupported:
            raise
        except Exception as error:
            log.warning("the encoder found no question: %r", error)
            raise EncoderUnavailable(retry_after=2) from error

    async def current(self, project: str, user_id: str, key: UserKey) -> Taste:
        """The taste at ``key.version``: from the index, else the database, else the encoder."""
        if key.pairs_total == 0:
            return Taste(key.version, None, 0)
        if key.embedding_version == key.version:
            found = await self._cached(index_id(project, key.incarnation))
            hit = found is not None and found[0] == key.version
            self._meters.index_lookups.labels("hit" if hit else "miss").inc()
            if found is not None and hit:
                return Taste(key.version, found[1], key.pairs_total)
            stored = await self._db(self._store.get_embedding, project, user_id, self.space)
            if stored is not None and stored.incarnation == key.incarnation:
                return Taste(stored.version, stored.values, stored.pairs_used)
        return await self.read(project, user_id, key.incarnation, key.version)

    async def at(self, project: str, user_id: str, incarnation: str, version: int) -> Taste | None:
        """The taste at a version that is stored; None when it is not."""
        stored = await self._db(self._store.get_embedding, project, user_id, self.space, version)
        if stored is None or stored.incarnation != incarnation:
            return None
        return Taste(version, stored.values, stored.pairs_used, stored.profile)

    async def _cached(self, name: str) -> tuple[int, np.ndarray] | None:
        try:
            async with asyncio.timeout(1.0):
                return await self._index.get(name)
        except (PPDError, TimeoutError):
            return None
