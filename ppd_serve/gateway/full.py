"""A queue that was full a moment ago still is: asking it again would slow down those it holds.

A refusal by the diffuser costs a look at the user and a call between two processes, which under a
heavy load is a good part of what drawing costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ppd_serve.errors import QueueFull

SECONDS = 0.25  # less than who was refused is told to wait


class Full:
    """Of ``lone`` diffuser: where there are several, one that is full says nothing of the others.
    ``clock``: seconds, from any zero."""

    def __init__(self, lone: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._lone, self._clock = lone, clock
        self._until = clock()
        self._pictures = 0
        self._why = QueueFull()

    def check(self, pictures: int) -> None:
        """Raises the ``QueueFull`` that as many pictures, or fewer, were just answered with."""
        if self._lone and self._clock() < self._until and pictures >= self._pictures:
            raise self._refusal()

    @contextmanager
    def learning(self, pictures: int) -> Iterator[None]:
        """Around a call of the diffuser."""
        try:
            yield
        except QueueFull as error:
            self._until, self._pictures, self._why = self._clock() + SECONDS, pictures, error
            raise self._refusal() from None

    def _refusal(self) -> QueueFull:
        error = QueueFull(self._why.detail, retry_after=self._why.retry_after)
        if self._lone and self._pictures == 1:
            error.lasts = max(0.0, self._until - self._clock())
        return error
