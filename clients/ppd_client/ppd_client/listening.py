"""A drawing that is listened to: an iterator over its events, in both kinds.

    with client.stream("a red fish") as drawing:
        for event in drawing:
            print(drawing.id, event)

It may also be iterated at once. Leaving, or closing it, stops listening.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Self

import httpx

from .errors import ConnectionFailed
from .events import Event, EventReader


class _Listening:
    _response: httpx.Response | None = None

    @property
    def id(self) -> str:
        """Of the generation; known once listening has begun."""
        if self._response is None:
            raise ValueError("not listening yet: use it in a with statement")
        return str(self._response.headers["generation-id"])


class Listening(_Listening):
    def __init__(self, connect: Callable[[], httpx.Response]) -> None:
        self._connect = connect

    def __enter__(self) -> Self:
        if self._response is None:
            self._response = self._connect()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()

    def __iter__(self) -> Iterator[Event]:
        with self:
            assert self._response is not None
            reader = EventReader(self._response)
            try:
                for text in self._response.iter_text():
                    yield from reader.feed(text)
            except httpx.TransportError as cause:
                raise ConnectionFailed(f"the stream broke off: {cause!r}") from cause
            reader.end()


class AsyncListening(_Listening):
    def __init__(self, connect: Callable[[], Awaitable[httpx.Response]]) -> None:
        self._connect = connect

    async def __aenter__(self) -> Self:
        if self._response is None:
            self._response = await self._connect()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()

    async def __aiter__(self) -> AsyncIterator[Event]:
        async with self:
            assert self._response is not None
            reader = EventReader(self._response)
            try:
                async for text in self._response.aiter_text():
                    for event in reader.feed(text):
                        yield event
            except httpx.TransportError as cause:
                raise ConnectionFailed(f"the stream broke off: {cause!r}") from cause
            reader.end()
