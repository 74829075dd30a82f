"""Threads for calls that block, tasks that outlive the request that started them, and jobs that
end with the user, or the taste code, that they are for."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from ppd_serve import logs
from ppd_serve.errors import PPDError

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class Threads:
    """``await threads(function, …)`` runs a function that blocks."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        return await loop.run_in_executor(
            self._pool, lambda: context.run(function, *args, **kwargs)
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Tasks:
    """Work that goes on when its caller is cancelled: a commit and what follows it, loops.

    Each task starts in a context that has nothing but the id of the request it came from. A copied
    one would carry that request itself, and with it Ray Serve would cancel every call the task
    makes to another part.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        context = contextvars.Context()
        context.run(logs.request_id.set, logs.request_id.get())
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Start and await; when the caller is cancelled, the work goes on."""
        return await asyncio.shield(self.start(work))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a task ended with %r", task.exception())  # its awaiter has it as well

    async def stop(self) -> None:
        while self._running:  # what is cancelled may start a last thing
            for task in list(self._running):
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)


class Job:
    """Work under way, which somebody may stop with a reason."""

    def __init__(self) -> None:
        self._reason: PPDError | None = None
        self._work: asyncio.Future[Any] | None = None

    def stop(self, reason: PPDError) -> None:
        self._reason = self._reason or reason
        if self._work is not None:
            self._work.cancel()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``; raises the reason when the job was or is stopped."""
        if self._reason is not None:
            work.close()
            raise self._reason
        self._work = asyncio.ensure_future(work)
        try:
            result: T = await self._work
            return result
        except asyncio.CancelledError:
            if self._reason is not None:
                raise self._reason from None
            self._work.cancel()
            raise
        finally:
            self._work = None


class Jobs:
    """The jobs under way, whom they are for and by which taste codes."""

    def __init__(self) -> None:
        self._users: dict[Job, tuple[str, Mapping[str, str]]] = {}
        self._codes: dict[Job, tuple[str, frozenset[str]]] = {}

    @contextmanager
    def running(
        self, job: Job, project: str, users: Mapping[str, str], codes: Iterable[str] = ()
    ) -> Iterator[None]:
        """Inside, the job is stopped when one of ``users`` (id → incarnation) is deleted, or one of
        the taste ``codes`` goes."""
        self._users[job] = project, users
        self._codes[job] = project, frozenset(codes)
        try:
            yield
        finally:
            del self._users[job], self._codes[job]

    def stop(self, project: str, user_id: str, living: str | None, reason: PPDError) -> None:
        """Stop what is for an incarnation of this user other than the ``living`` one."""
        for job, (place, users) in list(self._users.items()):
            if place == project and users.get(user_id, living) != living:
                job.stop(reason)

    def codes(self, project: str) -> set[str]:
        """The taste codes in use."""
        return {code for place, codes in self._codes.values() if place == project for code in codes}

    def stop_codes(self, gone: set[str], reason: PPDError) -> None:
        for job, (_, codes) in list(self._codes.items()):
            if codes & gone:
                job.stop(reason)
