"""Deleting a user: work stops, and when the call has answered nothing is left."""

from __future__ import annotations

import asyncio

import pytest

from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.services import Services
from ppd_serve.errors import ActorUnavailable, NotFound, StorageUnavailable, Unavailable
from tests.gateway.conftest import House, choices

P = "default"
ASK = GenerateIn(prompt="a boat", user_id="ann")


async def test_it_stops_the_drawing(server: Services, house: House) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    house.diffuser.gate.clear()
    call = asyncio.create_task(server.generations.draw(P, ASK, None))
    await house.diffuser.began.wait()
    await server.users.delete(P, "ann")
    with pytest.raises(NotFound):
        await call
    assert house.diffuser.cancelled == 1


async def test_it_stops_nobody_elses_drawing(server: Services, house: House) -> None:
    for project, user_id in [(P, "ann"), (P, "bob"), ("other", "ann")]:
        await server.preferences.add(project, user_id, choices("a"), None)
    house.diffuser.gate.clear()
    call = asyncio.create_task(server.generations.draw(P, ASK, None))
    await house.diffuser.began.wait()
    await server.users.delete(P, "bob")
    await server.users.delete("other", "ann")
    house.diffuser.gate.set()
    assert (await call).users[0].personalized


async def test_it_stops_the_reading(server: Services, house: House) -> None:
    house.encoder.gate.clear()
    post = asyncio.create_task(server.preferences.add(P, "ann", choices("a"), None))
    await house.encoder.began.wait()
    draw = asyncio.create_task(server.generations.draw(P, ASK, None))
    await server.users.delete(P, "ann")
    assert (await post).embedding.status == "pending"
    with pytest.raises(NotFound):
        await draw
    assert house.encoder.cancelled == 1


async def test_it_stops_work_also_when_cleaning_up_fails(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    house.diffuser.gate.clear()
    call = asyncio.create_task(server.generations.draw(P, ASK, None))
    await house.diffuser.began.wait()
    delete = house.store.delete_user

    def commits_and_fails(project: str, user_id: str) -> None:
        delete(project, user_id)
        raise StorageUnavailable

    monkeypatch.setattr(house.store, "delete_user", commits_and_fails)
    with pytest.raises(StorageUnavailable):
        await server.users.delete(P, "ann")
    async with asyncio.timeout(20):
        with pytest.raises(NotFound):
            await call
    assert house.diffuser.cancelled == 1


async def test_it_stops_no_work_when_it_does_not_happen(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object) -> None:
        raise StorageUnavailable

    await server.preferences.add(P, "ann", choices("a"), None)
    house.diffuser.gate.clear()
    call = asyncio.create_task(server.generations.draw(P, ASK, None))
    await house.diffuser.began.wait()
    monkeypatch.setattr(house.store, "delete_user", away)
    with pytest.raises(StorageUnavailable):
        await server.users.delete(P, "ann")
    house.diffuser.gate.set()
    assert (await call).images


async def test_it_answers_only_when_the_index_has_forgotten(server: Services, house: House) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    assert len(house.index.index) == 1
    house.index.error = ActorUnavailable()
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await server.users.delete(P, "ann")
        assert caught.value.retry_after
    house.index.error = None
    for _ in range(2):
        await server.users.delete(P, "ann")
        assert len(house.index.index) == 0
