"""The caller's end of a request: wait, await, watch its steps, cancel."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from ppd_serve.diffusion.request import GenerationRequest, Result

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """``step`` of ``steps`` is done; ``preview`` uint8 ``[h, w, 3]`` where one was asked for."""

    step: int
    steps: int
    preview: np.ndarray | None = None


class Ticket:
    """Made by ``Engine.submit``. Safe to use from any thread and any event loop.

    ``await ticket`` gives the result and raises what ``result`` raises; a task that is cancelled
    while awaiting leaves the request running (others may wait for it too): call ``cancel``.
    ``context`` is the caller's: what is logged about the request is logged there.
    """

    def __init__(self, request: GenerationRequest, cancel: Callable[[Ticket], bool]) -> None:
        self.request = request
        self.submitted = time.monotonic()
        self.context = contextvars.copy_context()
        self.cancelled = self.settled = False  # at most one of them, decided by the engine
        self._cancel = cancel
        self._future: Future[Result] = Future()
        self._watchers: list[Callable[[Progress], None]] = []

    def result(self, timeout: float | None = None) -> Result:
        """Block until the picture is there.

        Raises GenerationFailed, Cancelled, Interrupted (the engine stopped), or TimeoutError.
        """
        return self._future.result(timeout)

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> bool:
        """Leave the queue now, or the batch at the next step; ``result`` then raises Cancelled.

        False if it was over already.
        """
        return self._cancel(self)

    def on_step(self, watcher: Callable[[Progress], None]) -> None:
        """Call ``watcher`` after each coming step, on the engine's thread: be quick."""
        self._watchers.append(watcher)

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """The steps done from now on; ends when the request does, however it does."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Progress | None] = asyncio.Queue()

        def deliver(progress: Progress | None) -> None:
            with suppress(RuntimeError):  # the loop has been closed: nobody is listening
                loop.call_soon_threadsafe(inbox.put_nowait, progress)

        self.on_step(deliver)
        self._future.add_done_callback(lambda _: deliver(None))
        try:
            while (progress := await inbox.get()) is not None:
                yield progress
        finally:
            self._watchers.remove(deliver)

    # The engine's end.

    def advanced(self, progress: Progress) -> None:
        for watcher in list(self._watchers):
            try:
                watcher(progress)
            except Exception:
                self.context.run(log.exception, "a progress watcher failed")

    def succeed(self, result: Result) -> None:
        self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        self._future.set_exception(error)
