"""Listening: events typed, errors raised, connections closed, in both clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from ppd_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    Done,
    InvalidInput,
    NotFound,
    Queued,
    ServerError,
    Step,
    UnexpectedAnswer,
)

DRAWN = {"id": "g1", "created": 1, "release": "studio", "images": []}
STREAM = {"content-type": "text/event-stream", "generation-id": "g1"}


def event(id: int, name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\nid: {id}\n\n"


GOOD = [
    ": ping\n\n",
    event(1, "queued", {"position": 2}),
    event(2, "fanfare", {"new": "in a later version"}),
    event(3, "step", {"image": 0, "step": 1, "steps": 2}),
    ": ping\n\n",
    event(9, "done", DRAWN),
]


def stream(*blocks: str) -> httpx.Response:
    return httpx.Response(200, headers=STREAM, content="".join(blocks).encode())


async def heard(server: Any, kind: str, call: str, *args: Any, **options: Any) -> list[Any]:
    if kind == "sync":
        with server.client() as client:
            return list(getattr(client, call)(*args, **options))
    async with server.async_client() as client:
        return [event async for event in getattr(client, call)(*args, **options)]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_events(server, kind):
    server.says(stream(*GOOD))
    queued, step, done = await heard(server, kind, "stream", "fish", user_id="ann", n=2)
    assert queued == Queued(event_id=1, position=2)
    assert step == Step(event_id=3, image=0, step=1, steps=2)
    assert isinstance(done, Done) and done.generation.id == "g1"
    assert server.body == {"prompt": "fish", "user_id": "ann", "n": 2, "stream": True}
    assert "idempotency-key" not in server.requests[0].headers


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_listening_again(server, kind):
    server.says(stream(GOOD[-1]), stream())
    (done,) = await heard(server, kind, "events", "g1", 8)
    assert done.event_id == 9
    assert server.asked() == ["GET /generations/g1/events"]
    assert server.requests[0].headers["last-event-id"] == "8"
    assert await heard(server, kind, "events", "g1", 9) == []  # all was heard before


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_error_in_the_stream_is_raised(server, kind):
    problem = {"type": "urn:ppd:problem:generation-failed", "status": 500, "detail": "why"}
    server.says(stream(GOOD[1], event(2, "error", problem)))
    with pytest.raises(ServerError, match="why") as caught:
        await heard(server, kind, "stream", "fish")
    assert caught.value.type == "generation-failed"


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_refusal_is_raised_and_a_busy_server_asked_again(server, kind):
    server.refuses(422, "invalid-input", field="steps", detail="too many")
    with pytest.raises(InvalidInput, match="too many"):
        await heard(server, kind, "stream", "fish", steps=1000)
    server.refuses(503, "queue-full", headers={"retry-after": "3"})
    server.says(stream(*GOOD))
    assert len(await heard(server, kind, "stream", "fish", idempotency_key="k")) == 3
    assert server.pauses == [3.0]
    assert server.requests[-1].headers["idempotency-key"] == "k"
    server.refuses(404, "not-found")
    with pytest.raises(NotFound):
        await heard(server, kind, "events", "g1")


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("blocks", "error"),
    [
        (GOOD[:2], ConnectionFailed),  # it ends in the middle
        ([event(1, "step", {"image": 0})], UnexpectedAnswer),
        (["event: step\ndata: {\nid: 1\n\n"], UnexpectedAnswer),
        (["event: step\n\n"], UnexpectedAnswer),
    ],
)
async def test_a_stream_that_is_not_whole(server, kind, blocks, error):
    server.says(stream(*blocks))
    with pytest.raises(error):
        await heard(server, kind, "stream", "fish")


class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Queued for ever, in pieces that end anywhere; knows when it was closed."""

    closed = False

    def _pieces(self) -> Iterator[bytes]:
        number = 0
        while True:
            number += 1
            block = event(number, "queued", {"position": number}).encode()
            yield block[:9]
            yield block[9:]

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces():
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_leaving_closes_the_connection(kind):
    endless = Endless()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=STREAM, stream=endless))
    if kind == "sync":
        with Client(transport=transport) as client, client.stream("fish") as drawing:
            assert drawing.id == "g1"
            for event in drawing:
                if event.event_id == 5:
                    break
    else:
        async with AsyncClient(transport=transport) as client, client.stream("fish") as drawing:
            assert drawing.id == "g1"
            async for event in drawing:
                if event.event_id == 5:
                    break
    assert endless.closed


def test_an_id_is_known_once_listening(server):
    with pytest.raises(ValueError, match="with statement"):
        _ = server.client().stream("fish").id
    assert server.requests == []
