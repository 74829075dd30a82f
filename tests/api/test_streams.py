"""Drawings as they go over the wire: events, records, formats."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, Self

import httpx
import pytest

from ppd_serve.api import sse
from ppd_serve.api.events import Done, Drawn, Entry, Failed, Painted, Preview, Queued, Step
from ppd_serve.api.services import Services
from ppd_serve.errors import GenerationFailed, StorageUnavailable
from tests.api.doubles import MemoryListener, png
from tests.api.test_errors import is_problem

B64 = base64.b64encode(png()).decode()


def events(text: str) -> list[tuple[int, str, Any]]:
    """Id, name and data of each event of a stream."""
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def test_named_events(http: httpx.AsyncClient, services: Services) -> None:
    painted = Painted(0, "g0", 7, png())
    drawn = Drawn("gen1", 1, "studio", [painted], [], {"total": 0.1})
    services.generations.log = [  # type: ignore[attr-defined]
        Queued(3), Step(0, 1, 2), Preview(0, b"small"), painted, Done(drawn),
    ]  # fmt: skip
    response = await http.post("/generate", json={"prompt": "a", "seed": 7, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["generation-id"] == "gen1"
    assert response.headers["cache-control"] == "no-cache"
    image = {"image_id": "g0", "seed": 7, "b64_json": B64}
    assert events(response.text) == [
        (1, "queued", {"position": 3}),
        (2, "step", {"image": 0, "step": 1, "steps": 2}),
        (3, "preview", {"image": 0, "b64_json": base64.b64encode(b"small").decode()}),
        (4, "image", {"image": 0, **image}),
        (
            5,
            "done",
            {
                "id": "gen1", "created": 1, "release": "studio", "images": [image], "users": [],
                "timing": {"total": 0.1},
            },
        ),
    ]  # fmt: skip


async def test_the_end_is_the_answer_of_a_call_that_waits(http: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "n": 2, "response_format": "url"}
    streamed = await http.post("/generate", json={**body, "stream": True})
    *_, (_, name, done) = events(streamed.text)
    waited = (await http.post("/generate", json=body)).json()
    for answer in (done, waited):
        for image in answer["images"]:
            assert (await http.get(image.pop("url"))).status_code == 404  # signed, but not kept
    assert (name, done) == ("done", waited)


async def test_an_error_in_a_stream_is_a_problem(
    http: httpx.AsyncClient, services: Services
) -> None:
    services.generations.log = [Queued(0), Failed(GenerationFailed("why"))]  # type: ignore[attr-defined]
    response = await http.post("/generate", json={"prompt": "a", "stream": True})
    *_, (_, name, problem) = events(response.text)
    assert (name, problem["type"]) == ("error", "urn:ppd:problem:generation-failed")
    assert (problem["status"], problem["detail"]) == (500, "why")


async def test_a_picture_that_cannot_be_read_any_more(
    http: httpx.AsyncClient, services: Services
) -> None:
    services.images.error = StorageUnavailable()  # type: ignore[attr-defined]
    services.generations.log = [Queued(0), Painted(0, "g0", 7)]  # type: ignore[attr-defined]
    response = await http.post("/generate", json={"prompt": "a", "stream": True})
    assert [name for _, name, _ in events(response.text)] == ["queued", "error"]


async def test_what_is_refused_before_the_stream_is_an_ordinary_answer(
    http: httpx.AsyncClient, services: Services
) -> None:
    services.generations.error = StorageUnavailable()  # type: ignore[attr-defined]
    for headers in ({}, {"Prefer": "respond-async"}):
        response = await http.post(
            "/generate", json={"prompt": "a", "stream": not headers}, headers=headers
        )
        is_problem(response, 503, "storage-unavailable")
        assert response.headers["retry-after"]


class Slow(MemoryListener):
    """Says the next thing when it is told to."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__(log)
        self.go_on = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        await self.go_on.wait()
        return await super().__anext__()


async def written(entry: Entry) -> sse.Said:
    return "event", str(entry.id)


async def test_a_comment_when_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.001)
    listener = Slow([Queued(0)])
    stream = sse.EventStream(listener, written).body_iterator
    for _ in range(3):
        assert (await anext(stream)).startswith(b":")  # type: ignore[union-attr]
    listener.go_on.set()
    said = b""
    while not said or said.startswith(b":"):
        said = await anext(stream)  # type: ignore[assignment]
    assert said == b"event: event\ndata: 1\nid: 1\n\n"


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_who_goes_is_no_longer_listening(spec_version: str) -> None:
    """The two ways in which servers tell that the caller has gone."""
    listener, gone = Slow([Queued(0)]), asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        gone.set()
        listener.go_on.set()
        if message["type"] == "http.response.body" and spec_version == "2.4":
            raise OSError

    scope = {"type": "http", "asgi": {"spec_version": spec_version}}
    try:
        await sse.EventStream(listener, written)(scope, receive, send)
    except Exception as error:
        assert spec_version == "2.4", error
    assert listener.closed


async def test_later(http: httpx.AsyncClient, services: Services) -> None:
    headers = {"Prefer": "wait=5, respond-async"}
    response = await http.post("/generate", json={"prompt": "a"}, headers=headers)
    assert response.status_code == 202
    assert response.headers["location"] == "/generations/gen1"
    assert response.headers["generation-id"] == "gen1"
    assert response.headers["preference-applied"] == "respond-async"
    assert response.json() == {
        "id": "gen1", "status": "queued", "created": 1, "release": "studio", "images": [],
        "users": [], "timing": {}, "error": None,
    }  # fmt: skip


async def test_records(http: httpx.AsyncClient, services: Services) -> None:
    for call in (http.get, http.delete):
        response = await call("/generations/gen1")
        record = response.json()
        assert response.status_code == (200 if call == http.get else 202)
        assert (record["status"], record["error"]["status"]) == ("failed", 500)
        assert record["error"]["type"] == "urn:ppd:problem:generation-failed"
        (image,) = record["images"]
        assert image["seed"] == 7 and "signature=" in image["url"]
        is_problem(await call("/generations/gen2"), 404, "not-found")


async def test_listening_again(http: httpx.AsyncClient, services: Services) -> None:
    response = await http.get("/generations/gen1/events", headers={"Last-Event-ID": "7"})
    assert [name for _, name, _ in events(response.text)] == ["error"]
    assert ("events", 7) in services.generations.calls  # type: ignore[attr-defined]
    for wrong in ("x", "-1", str(2**53)):
        response = await http.get("/generations/gen1/events", headers={"Last-Event-ID": wrong})
        is_problem(response, 422, "invalid-input", "Last-Event-ID")
    is_problem(await http.get("/generations/gen2/events"), 404, "not-found")


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
async def test_other_formats(http: httpx.AsyncClient, kind: str) -> None:
    accept = {"Accept": f"image/{kind}, application/json;q=0.5"}
    response = await http.post("/generate", json={"prompt": "a"}, headers=accept)
    assert response.headers["content-type"] == f"image/{kind}"
    assert response.headers["generation-id"] == "gen1"
    assert response.content == f"{kind}: ".encode() + png()
    two = await http.post("/generate", json={"prompt": "a", "n": 2}, headers=accept)
    is_problem(two, 422, "invalid-input", "n")


async def test_what_we_do_not_have(http: httpx.AsyncClient) -> None:
    for body, accept in [
        ({}, "text/html"),
        ({}, "image/gif, image/png;q=0"),
        ({"stream": True}, "image/png"),
    ]:
        response = await http.post(
            "/generate", json={"prompt": "a", **body}, headers={"Accept": accept}
        )
        is_problem(response, 406, "not-acceptable", "Accept")


async def test_uploads_have_keys(http: httpx.AsyncClient, services: Services) -> None:
    for _ in range(2):
        response = await http.post("/images", content=png(), headers={"Idempotency-Key": "k"})
        assert response.status_code == 201
    first, second = services.images.calls  # type: ignore[attr-defined]
    assert first == second and first[2].route == "POST /images"
