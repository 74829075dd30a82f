"""Server-sent events: what a listener hears, written as ``text/event-stream``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from ppd_serve.api.events import Entry, Failed, Listener
from ppd_serve.errors import PPDError

PING_SECONDS = 15.0
Said = tuple[str, str]  # name and data (JSON) of an event
Write = Callable[[Entry], Awaitable[Said | None]]

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second: nginx waits, else


class EventStream(EventSourceResponse):
    """Says what ``write`` makes of each entry (None: nothing); a comment when there is nothing to
    say. Closes the listener when the caller has all, or has gone."""

    def __init__(
        self, listener: Listener, write: Write, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(_written(listener, write), headers={**_HEADERS, **(headers or {})})
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listener.close()


async def _written(listener: Listener, write: Write) -> AsyncIterator[bytes]:
    last = 0
    try:
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    entry = await anext(listener)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            except StopAsyncIteration:
                return
            last = entry.id
            if (said := await write(entry)) is not None:
                yield _event(last, said)
    except PPDError as error:  # a picture can't be read any more, say: the head is long sent
        if (said := await write(Entry(last, Failed(error)))) is not None:
            yield _event(last, said)


def _event(id: int, said: Said) -> bytes:
    name, data = said
    return format_sse_event(event=name, data_str=data, id=str(id))


def documented(events: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a response in OpenAPI; ``events``: the JSON schema of the data by name."""
    kinds = [
        {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "event": {"const": name},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": schema,
                },
            },
            "required": ["id", "event", "data"],
        }
        for name, schema in events.items()
    ]
    return {"text/event-stream": {"itemSchema": {"oneOf": kinds}}}  # OpenAPI 3.2's word for it
