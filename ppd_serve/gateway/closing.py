"""The end of a gateway: nothing more is begun, what was begun is finished."""

from __future__ import annotations

import asyncio
from typing import Any

from ppd_serve.errors import Unavailable

AGAIN_SECONDS = 5.0  # then another gateway, or the next server, may be there


class Closing:
    """``seconds``: how long the work under way may take to end; then it is cancelled."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._work: set[asyncio.Task[Any]] = set()
        self._deadline: float | None = None

    @property
    def began(self) -> bool:
        return self._deadline is not None

    def check(self) -> None:
        """Before any work is begun. Raises ``Unavailable``."""
        if self.began:
            raise Unavailable("The server is stopping", retry_after=AGAIN_SECONDS)

    def add(self, work: asyncio.Task[Any]) -> None:
        self._work.add(work)
        work.add_done_callback(self._work.discard)

    async def drain(self) -> None:
        """Return when all work has ended. Who asks again waits for the same end."""
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._seconds
        if self._work:
            await asyncio.wait(self._work, timeout=max(0.0, self._deadline - now))
        for work in self._work:
            work.cancel()
        if self._work:
            await asyncio.wait(self._work)
