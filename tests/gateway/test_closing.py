"""A gateway that stops: it finishes what it draws, and begins nothing more."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.api.events import Done
from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.loop_schemas import QuestionIn
from ppd_serve.errors import Interrupted, Unavailable
from ppd_serve.storage.values import Idempotency
from tests.gateway.conftest import House
from tests.gateway.test_streams import KEY, TWO, P, all_of, stream

LONG = 600.0
ONE = GenerateIn(prompt="a boat")
QUESTION = QuestionIn(prompt="a boat")


async def test_what_is_drawn_is_finished_and_nothing_is_begun(house: House) -> None:
    house.drain_s = LONG
    house.diffuser.last.clear()
    server = house.open()
    async with server.running:
        waiting = asyncio.create_task(server.generations.draw(P, ONE, None))
        await house.diffuser.began.wait()
        watched = await stream(server)
        later = await server.generations.submit(P, TWO, KEY)  # nobody waits for this one
        draining = asyncio.create_task(server.drain())
        while await server.status.missing() != {"server": "draining"}:
            await asyncio.sleep(0)
        for key in (None, Idempotency("POST /generate", "another", "hash")):
            with pytest.raises(Unavailable) as refused:
                await server.generations.submit(P, ONE, key)
            assert refused.value.retry_after
        joined = await stream(server, key=KEY)  # begins nothing
        assert joined.id == later.id and not draining.done()
        house.diffuser.last.set()
        await draining
        assert (await waiting).images
        *_, end = await all_of(watched.entries)
        assert isinstance(end.event, Done)
        assert (await server.generations.get(P, later.id)).state == "done"
    assert len(house.diffuser.asked) == 3 and house.diffuser.cancelled == 0


async def test_leaving_drains_by_itself(house: House) -> None:
    house.drain_s = LONG
    house.diffuser.gate.clear()
    server = house.open()
    async with server.running:
        watched = await server.generations.stream(P, TWO, KEY, 0)
        asyncio.get_running_loop().call_soon(house.diffuser.gate.set)
    *_, end = await all_of(watched.entries)
    assert isinstance(end.event, Done)


async def test_what_takes_longer_is_interrupted(house: House) -> None:
    house.drain_s = 0.01
    house.diffuser.last.clear()
    server = house.open()
    async with server.running:
        later = await server.generations.submit(P, TWO, None)
        await asyncio.gather(server.drain(), server.drain())
        told = await server.generations.get(P, later.id)
        assert told.state == "failed" and isinstance(told.error, Interrupted)
        assert house.diffuser.cancelled == 1


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_question_under_way_is_asked(house: House, key: Idempotency | None) -> None:
    house.drain_s = LONG
    house.diffuser.gate.clear()
    server = house.open()
    async with server.running:
        call = asyncio.create_task(server.questions.ask(P, "ann", QUESTION, key))
        await house.diffuser.began.wait()
        asyncio.get_running_loop().call_soon(house.diffuser.gate.set)
        await server.drain()
        if key is not None:  # whose answer is kept by now
            again = await server.questions.ask(P, "ann", QUESTION, key)
            assert again == await call
    assert (await call).question_id
    assert len(house.diffuser.asked) == 1


@pytest.mark.parametrize("key", [None, KEY])
async def test_leaving_waits_for_a_question(house: House, key: Idempotency | None) -> None:
    house.drain_s = LONG
    house.diffuser.gate.clear()
    server = house.open()
    async with server.running:
        call = asyncio.create_task(server.questions.ask(P, "ann", QUESTION, key))
        await house.diffuser.began.wait()
        asyncio.get_running_loop().call_soon(house.diffuser.gate.set)
    assert (await call).question_id


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_question_that_takes_longer_is_interrupted(
    house: House, key: Idempotency | None
) -> None:
    house.drain_s = 0.01
    house.diffuser.gate.clear()
    server = house.open()
    async with server.running:
        call = asyncio.create_task(server.questions.ask(P, "ann", QUESTION, key))
        await house.diffuser.began.wait()
        await server.drain()
        with pytest.raises(Interrupted):
            await call
        assert house.diffuser.cancelled == 1
        assert house.store.questions_total(P, "ann") == 0
        if key is not None:  # the next server asks
            assert house.store.begin_idempotent(P, key) is None


async def test_over_http(house: House) -> None:
    server = house.open()
    async with server.running:
        await server.drain()
        transport = httpx.ASGITransport(create_app(server))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            readyz = await http.get("/readyz")
            assert (readyz.status_code, readyz.json()["detail"]) == (503, "server: draining")
            refused = await http.post("/generate", json={"prompt": "a boat"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.put("/users/ann")).status_code == 201
