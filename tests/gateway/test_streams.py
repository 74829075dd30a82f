"""Listening to a drawing: everything, from anywhere, by anybody; and how it stops."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppd_serve.api.events import Done, Entry, Failed, Listener, Painted, Preview, Queued, Step
from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.services import Services, Watched
from ppd_serve.errors import (
    Cancelled,
    GenerationFailed,
    Interrupted,
    InvalidInput,
    NotFound,
    PPDError,
    QueueFull,
    StorageUnavailable,
)
from ppd_serve.gateway import generations
from ppd_serve.storage.store import Store
from ppd_serve.storage.values import Idempotency
from tests.api.doubles import png
from tests.gateway.conftest import House, choices
from tests.gateway.doubles import STEPS

P = "default"
TWO = GenerateIn(prompt="a boat", n=2, seed=7, stream=True)
KEY = Idempotency("POST /generate", "k", "hash")


async def all_of(listener: Listener) -> list[Entry]:
    return [entry async for entry in listener]


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def stream(server: Services, body: GenerateIn = TWO, key: Any = None) -> Watched:
    return await server.generations.stream(P, body, key, 1)


async def until_painting(listener: Listener) -> list[Entry]:
    """What is heard while ``FakeDiffuser.last`` is not set."""
    last = Step(1, STEPS, STEPS)
    heard: list[Entry] = []
    while not heard or heard[-1].event != last:
        heard.append(await anext(listener))
    return heard


async def test_what_is_heard(server: Services) -> None:
    entries = await all_of((await stream(server)).entries)
    assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    events = [entry.event for entry in entries]
    assert events[:2] == [Queued(1), Queued(0)]
    for image in range(2):
        steps = [event for event in events if isinstance(event, Step) and event.image == image]
        assert steps == [Step(image, n, STEPS) for n in range(1, STEPS + 1)]
    *_, first, second, done = events
    assert isinstance(first, Painted) and isinstance(second, Painted) and isinstance(done, Done)
    assert (first.image, first.seed, second.image, second.seed) == (1, 8, 0, 7)
    assert list(done.drawn.images) == [second, first]


async def test_a_late_joiner_hears_everything_but_outdated_previews(
    server: Services, house: House
) -> None:
    house.diffuser.last.clear()
    body = TWO.model_copy(update={"steps": 3})
    watched = await server.generations.stream(P, body, None, 2)
    early = await until_painting(watched.entries)
    late = (await server.generations.events(P, watched.id, 0)).entries
    other = (await server.generations.events(P, watched.id, 5)).entries
    house.diffuser.last.set()
    rest = await all_of(watched.entries)
    newest = {f"preview 2 of {image}".encode() for image in range(2)}
    kept = [
        entry
        for entry in [*early, *rest]
        if not isinstance(entry.event, Preview) or entry.event.png in newest
    ]
    heard = await all_of(late)
    assert [e for e in heard if not isinstance(e.event, Preview)] == [
        e for e in kept if not isinstance(e.event, Preview)
    ]
    assert {e.id for e in heard} <= {e.id for e in kept}
    assert await all_of(other) == [entry for entry in heard if entry.id > 5]


async def test_after_the_end_pictures_and_end_are_told_from_anywhere(
    server: Services, house: House
) -> None:
    watched = await stream(server)
    live = [e for e in await all_of(watched.entries) if isinstance(e.event, Painted | Done)]
    for after in (0, live[0].id, live[1].id, live[2].id):
        told = await all_of((await server.generations.events(P, watched.id, after)).entries)
        assert [entry.id for entry in told] == [e.id for e in live if e.id > after]
        if told:
            end = told[-1].event
            assert isinstance(end, Done)
            assert [p.image_id for p in end.drawn.images] == [
                p.image_id
                for p in live[-1].event.drawn.images  # type: ignore[union-attr]
            ]
            assert end.drawn.timing and end.drawn.release == "studio"
    with pytest.raises(NotFound):
        await server.generations.events("other", watched.id, 0)


async def test_who_leaves_stops_it_if_nobody_else_listens(server: Services, house: House) -> None:
    house.diffuser.gate.clear()
    watched = await stream(server)
    other = await server.generations.events(P, watched.id, 0)
    watched.entries.close()
    assert await anext(other.entries) == Entry(1, Queued(1))
    assert house.diffuser.cancelled == 0
    other.entries.close()
    await until(lambda: house.store.get_generation(P, watched.id).state == "cancelled")
    assert house.diffuser.cancelled == 1


async def test_a_caller_that_is_cancelled_before_it_is_taken_stops_it(
    server: Services, house: House
) -> None:
    house.encoder.gate.clear()
    post = asyncio.create_task(server.preferences.add(P, "ann", choices("a"), None))
    await house.encoder.began.wait()
    body = GenerateIn(prompt="a boat", user_id="ann", stream=True)
    call = asyncio.create_task(stream(server, body))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    house.encoder.gate.set()
    await post
    await server.generations.draw(P, GenerateIn(prompt="next"), None)
    assert [asked.prompt for asked in house.diffuser.asked] == ["next"]


async def test_with_a_key_it_runs_on_and_is_joined(server: Services, house: House) -> None:
    house.diffuser.last.clear()
    first = await stream(server, key=KEY)
    heard = await until_painting(first.entries)
    first.entries.close()
    second = await stream(server, key=KEY)
    assert second.id == first.id
    house.diffuser.last.set()
    entries = await all_of(second.entries)
    assert [e for e in entries if isinstance(e.event, Step)] == [
        e for e in heard if isinstance(e.event, Step)
    ]
    again = await all_of((await stream(server, key=KEY)).entries)
    assert [(e.id, type(e.event)) for e in again] == [
        (e.id, type(e.event)) for e in entries if isinstance(e.event, Painted | Done)
    ]
    with pytest.raises(InvalidInput):
        await stream(server, key=Idempotency(KEY.route, KEY.key, "other"))
    assert len(house.diffuser.asked) == 1 and house.diffuser.cancelled == 0


async def test_what_waits_for_nobody_is_recorded_as_running(server: Services, house: House) -> None:
    house.diffuser.place = 0
    house.diffuser.last.clear()
    submitted = await server.generations.submit(P, TWO, None)
    assert submitted.state == "running"
    house.diffuser.last.set()
    await until(lambda: house.store.get_generation(P, submitted.id).state == "done")


async def test_a_record_goes_from_queued_to_done_by_itself(server: Services, house: House) -> None:
    house.diffuser.gate.clear()
    house.diffuser.last.clear()
    submitted = await server.generations.submit(P, TWO, None)
    assert (submitted.state, submitted.images, submitted.error) == ("queued", [], None)
    house.diffuser.gate.set()
    watched = await server.generations.events(P, submitted.id, 0)
    await until_painting(watched.entries)
    assert (await server.generations.get(P, submitted.id)).state == "running"
    watched.entries.close()
    house.diffuser.last.set()
    await until(lambda: house.store.get_generation(P, submitted.id).state == "done")
    done = await server.generations.get(P, submitted.id)
    assert [(painted.image, painted.seed) for painted in done.images] == [(0, 7), (1, 8)]
    assert await server.images.read(P, done.images[0].image_id) == (
        png((16, 16), "#007"),
        "image/png",
    )


async def test_cancelling(server: Services, house: House) -> None:
    house.diffuser.last.clear()
    submitted = await server.generations.submit(P, TWO, KEY)
    watched = await server.generations.events(P, submitted.id, 0)
    await until_painting(watched.entries)
    assert (await server.generations.cancel(P, submitted.id)).state == "cancelled"
    assert house.diffuser.cancelled == 1
    (end,) = await all_of(watched.entries)
    assert isinstance(end.event, Failed) and isinstance(end.event.error, Cancelled)
    for _ in range(2):
        told = await server.generations.cancel(P, submitted.id)
        assert told.state == "cancelled" and isinstance(told.error, Cancelled)
    again = await all_of((await server.generations.events(P, submitted.id, 0)).entries)
    assert [(e.id, type(e.event)) for e in again] == [(end.id, Failed)]
    house.diffuser.last.set()
    drawn = await server.generations.draw(P, TWO, KEY)  # its key is free
    assert drawn.id != submitted.id
    assert (await server.generations.cancel(P, drawn.id)).state == "done"
    for project, generation_id in [(P, "gen_unknown"), ("other", drawn.id)]:
        with pytest.raises(NotFound):
            await server.generations.cancel(project, generation_id)


@pytest.mark.parametrize("error", [GenerationFailed("why"), RuntimeError("secret")])
async def test_a_failure_ends_the_log_and_the_record(
    server: Services, house: House, error: Exception
) -> None:
    house.diffuser.late_error = error
    watched = await stream(server)
    *_, end = await all_of(watched.entries)
    assert isinstance(end.event, Failed) and isinstance(end.event.error, GenerationFailed)
    assert "secret" not in str(end.event.error)
    told = await server.generations.get(P, watched.id)
    assert told.state == "failed" and isinstance(told.error, GenerationFailed)


async def test_what_the_engine_refuses_is_said_at_once_and_leaves_nothing(
    server: Services, house: House, tmp_path: Path
) -> None:
    house.diffuser.error = QueueFull(retry_after=3)
    for call in (
        server.generations.draw(P, TWO, None),
        server.generations.draw(P, TWO, KEY),
        server.generations.submit(P, TWO, None),
        server.generations.stream(P, TWO, None, 0),
    ):
        with pytest.raises(QueueFull) as caught:
            await call
        assert caught.value.retry_after == 3
    with sqlite3.connect(tmp_path / "ppd.db") as db:
        assert db.execute("select count(*) from generations").fetchone() == (0,)


async def test_deleting_a_user_ends_what_is_heard(server: Services, house: House) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    house.diffuser.last.clear()
    body = GenerateIn(prompt="a boat", n=2, user_id="ann", stream=True)
    watched = await stream(server, body, KEY)
    other = await server.generations.events(P, watched.id, 0)
    await server.users.delete(P, "ann")
    for listener in (watched.entries, other.entries):
        *_, end = await all_of(listener)
        assert isinstance(end.event, Failed) and isinstance(end.event.error, NotFound)
    assert house.diffuser.cancelled == 1
    with pytest.raises(NotFound):
        await server.generations.events(P, watched.id, 0)
    with pytest.raises(NotFound):
        await server.generations.get(P, watched.id)


def another(tmp_path: Path) -> House:
    """Another process on the same store."""
    return House(Store.open(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs")))


async def test_after_a_crash_it_was_interrupted(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.diffuser.last.clear()
    dying = house.open()
    async with dying.running:
        submitted = await dying.generations.submit(P, TWO, KEY)
        monkeypatch.setattr(house.store, "set_generation", lambda *end: True)  # it records no end
    house = another(tmp_path)
    server = house.open()
    async with server.running:
        told = await server.generations.get(P, submitted.id)
        assert told.state == "failed" and isinstance(told.error, Interrupted)
        entries = await all_of((await server.generations.events(P, submitted.id, 5)).entries)
        assert [entry.id for entry in entries] == [6]
        assert isinstance(entries[0].event, Failed)
        assert isinstance(entries[0].event.error, Interrupted)
        assert (await server.generations.draw(P, TWO, KEY)).images


async def test_a_server_that_stops_interrupts_what_it_draws(house: House, tmp_path: Path) -> None:
    house.diffuser.last.clear()
    server = house.open()
    async with server.running:
        watched = await stream(server)
    *_, end = await all_of(watched.entries)
    assert isinstance(end.event, Failed) and isinstance(end.event.error, Interrupted)
    house = another(tmp_path)
    assert house.store.get_generation(P, watched.id).state == "failed"
    house.store.close()


async def test_another_process_can_listen_and_cancel(
    server: Services, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "ELSEWHERE_SECONDS", 0.01)
    elsewhere = another(tmp_path).open()
    async with elsewhere.running:
        house.diffuser.last.clear()
        submitted = await server.generations.submit(P, TWO, None)
        hearing = await elsewhere.generations.events(P, submitted.id, 0)
        house.diffuser.last.set()
        kinds = [type(entry.event) for entry in await all_of(hearing.entries)]
        assert kinds == [Painted, Painted, Done]

        house.diffuser.last.clear()
        watched = await stream(server)
        assert (await elsewhere.generations.cancel(P, watched.id)).state == "cancelled"
        house.diffuser.last.set()
        *_, end = await all_of(watched.entries)
        assert isinstance(end.event, Failed) and isinstance(end.event.error, Cancelled)


async def test_an_end_is_recorded_though_the_database_was_away(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object) -> None:
        raise StorageUnavailable

    house.diffuser.last.clear()
    watched = await stream(server)
    await until_painting(watched.entries)
    monkeypatch.setattr(house.store, "set_generation", away)
    house.diffuser.last.set()
    *_, end = await all_of(watched.entries)
    assert isinstance(end.event, Failed) and isinstance(end.event.error, PPDError)
    monkeypatch.undo()
    await until(lambda: house.store.get_generation(P, watched.id).state == "failed")


async def test_an_upload_happens_once(server: Services) -> None:
    key = Idempotency("POST /images", "k", "hash")
    first = await server.images.add(P, png(), key)
    assert await server.images.add(P, png(), key) == first
    assert await server.images.add(P, png(), None) != first
    with pytest.raises(InvalidInput):
        await server.images.add(P, png(), Idempotency(key.route, key.key, "other"))
