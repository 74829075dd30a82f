"""Whether every part can do its work, known before anybody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from ppd_serve.api.schemas import ReleaseOut, ReleasesOut
from ppd_serve.errors import PPDError
from ppd_serve.gateway.closing import Closing
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.ports import DiffuserPort, EncoderPort, IndexPort
from ppd_serve.gateway.running import Threads
from ppd_serve.meters import Meters
from ppd_serve.storage.store import Store

BEAT_SECONDS = 1.0
FRESH_SECONDS = 10.0
SWEEP_SECONDS = 3600.0
log = logging.getLogger(__name__)


class StatusService:
    """``parts``: those with a heartbeat. A beat returns only once its part is warm."""

    def __init__(
        self,
        store: Store,
        db: Threads,
        feed: Feed,
        encoder: EncoderPort,
        index: IndexPort,
        diffuser: DiffuserPort,
        release: ReleaseOut,
        meters: Meters,
        closing: Closing,
    ) -> None:
        self._store, self._db, self._feed, self._release = store, db, feed, release
        self._diffuser, self._meters, self._closing = diffuser, meters, closing
        self._parts: dict[str, EncoderPort | IndexPort | DiffuserPort] = {
            "encoder": encoder,
            "index": index,
            "diffuser": diffuser,
        }
        self._seen: dict[str, float] = {}
        self._samplers: list[str] | None = None  # they are the release's, whoever draws it

    async def releases(self) -> ReleasesOut:
        if self._samplers is None:
            self._samplers = await self._diffuser.samplers()
        active = self._release.model_copy(update={"samplers": self._samplers})
        return ReleasesOut(active=active, known=[active.name])

    async def missing(self) -> dict[str, str]:
        if self._closing.began:
            return {"server": "draining"}
        found = {}
        try:
            async with asyncio.timeout(2.0):
                await self._db(self._store.ping)
        except (PPDError, TimeoutError):
            found["database"] = "does not answer"
        for part in self._parts:
            seen = self._seen.get(part)
            if seen is None:
                found[part] = "not warm yet"
            elif time.monotonic() - seen > FRESH_SECONDS:
                found[part] = "does not answer"
        if self._feed.trouble is not None:
            found["index"] = self._feed.trouble
        return found

    async def watch(self, part: str) -> None:
        """Listen to one part's heart for as long as the server runs."""
        while True:
            try:
                async with asyncio.timeout(FRESH_SECONDS):
                    self._meters.heard(await self._parts[part].beat())
                self._seen[part] = time.monotonic()
            except Exception as error:
                log.info("%s: no heartbeat: %r", part, error)
            await asyncio.sleep(BEAT_SECONDS)

    async def feed(self) -> None:
        """Bring the index up to date whenever it has fallen behind or was restarted."""
        while True:
            await self._feed.try_to_sync(60.0)
            await asyncio.sleep(BEAT_SECONDS)

    async def stay(self) -> None:
        """Keep saying that we live, whoever asks."""
        while True:
            with suppress(Exception):  # readiness tells
                await self._db(self._store.ping)
            await asyncio.sleep(BEAT_SECONDS)

    async def sweep(self) -> None:
        """Remove what has expired."""
        while True:
            try:
                await self._db(self._store.sweep)
            except Exception as error:
                log.warning("could not sweep: %r", error)
            await asyncio.sleep(SWEEP_SECONDS)
