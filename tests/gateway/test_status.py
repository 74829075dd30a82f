"""What is known about the parts, and the loops that keep it so."""

from __future__ import annotations

import asyncio

import pytest

from ppd_serve.api.services import Services
from ppd_serve.errors import ActorUnavailable, StorageUnavailable
from ppd_serve.gateway import status
from tests.gateway.conftest import House, choices

P = "default"


async def test_readiness_names_the_part(server: Services, house: House) -> None:
    async with asyncio.timeout(20):
        while await server.status.missing():
            await asyncio.sleep(0.01)

    def away() -> None:
        raise StorageUnavailable

    house.store.ping = away  # type: ignore[method-assign]
    assert list(await server.status.missing()) == ["database"]


async def test_the_release_is_known_while_the_diffuser_restarts(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> list[str]:
        raise ActorUnavailable

    known = await server.status.releases()
    monkeypatch.setattr(house.diffuser, "samplers", away)
    assert await server.status.releases() == known


async def test_a_gateway_says_that_it_lives_without_being_asked(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes asks Ray for readiness, not us."""
    monkeypatch.setattr(status, "BEAT_SECONDS", 0.01)
    loop, said = asyncio.get_running_loop(), asyncio.Event()
    times = iter(range(1_000_000))

    def ping() -> None:
        if next(times) > 2:
            loop.call_soon_threadsafe(said.set)
        raise StorageUnavailable  # and it goes on

    monkeypatch.setattr(house.store, "ping", ping)
    async with asyncio.timeout(20):
        await said.wait()


async def test_the_loops_outlive_a_bug(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "SWEEP_SECONDS", 0.01)
    house.index.error = ValueError("a bug")
    sweep, swept = house.store.sweep, asyncio.Event()
    loop = asyncio.get_running_loop()

    def broken() -> None:
        monkeypatch.setattr(house.store, "sweep", works)
        raise ValueError("a bug")

    def works() -> object:
        loop.call_soon_threadsafe(swept.set)
        return sweep()

    monkeypatch.setattr(house.store, "sweep", broken)
    server = house.open()
    async with server.running:
        answer = await server.preferences.add(P, "ann", choices("a"), None)
        assert answer.embedding.status == "current"
        async with asyncio.timeout(20):
            await swept.wait()
            house.index.error = None
            while await server.status.missing() or len(house.index.index) != 1:
                await asyncio.sleep(0.01)
