"""What has happened to one drawing, for any number of listeners who come and go."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from typing import Self

from ppd_serve.api.events import Done, Entry, Event, Failed, Painted, Preview


class EventLog:
    """Entries in order; ``Done`` or ``Failed`` ends it. Of an unfinished picture's previews only
    the newest is kept, of a finished one's none: a log is as long as its pictures have steps.

    ``deserted`` is called when the last listener leaves before the end.
    """

    def __init__(self, deserted: Callable[[], None] = lambda: None) -> None:
        self._entries: list[Entry] = []
        self._grown = asyncio.Event()
        self._deserted = deserted
        self._listeners = 0
        self.last = 0  # the number of the newest entry
        self.painted: dict[int, int] = {}  # picture → its entry's number
        self.ended = False

    def append(self, event: Event, id: int | None = None) -> int:
        """Its number; ``id``: a number of the caller's, greater than all before."""
        if isinstance(event, Preview | Painted):
            self._forget_preview(event.image)
        self.last = self.last + 1 if id is None else id
        self._entries.append(Entry(self.last, event))
        if isinstance(event, Painted):
            self.painted[event.image] = self.last
        self.ended = isinstance(event, Done | Failed)
        self._grown.set()
        self._grown = asyncio.Event()
        return self.last

    def _forget_preview(self, image: int) -> None:
        self._entries = [
            entry
            for entry in self._entries
            if not (isinstance(entry.event, Preview) and entry.event.image == image)
        ]

    def listen(self, after: int = 0) -> EventListener:
        """Everything after the entry ``after``, and all that comes, to the end."""
        return EventListener(self, after)

    def arrived(self) -> None:
        self._listeners += 1

    def left(self) -> None:
        self._listeners -= 1
        if not (self._listeners or self.ended):
            self._deserted()

    def next(self, after: int) -> Entry | None:
        """The first one after ``after`` that is there."""
        index = bisect_right(self._entries, after, key=lambda entry: entry.id)
        return self._entries[index] if index < len(self._entries) else None

    async def grown(self) -> None:
        """Return when there is more, or has been all."""
        if not self.ended:
            await self._grown.wait()


class EventListener:
    """``ppd_serve.api.events.Listener`` on a log."""

    def __init__(self, log: EventLog, after: int) -> None:
        self._log, self._at = log, after
        self._listening = True
        log.arrived()

    async def first(self) -> Entry | None:
        """What comes next, without taking it; None: nothing any more."""
        while (entry := self._log.next(self._at)) is None:
            if self._log.ended:
                return None
            await self._log.grown()
        return entry

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        entry = await self.first() if self._listening else None
        if entry is None:
            raise StopAsyncIteration
        self._at = entry.id
        return entry

    def close(self) -> None:
        if self._listening:
            self._listening = False
            self._log.left()
