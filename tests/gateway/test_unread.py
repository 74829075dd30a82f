"""Whose reading it is, and that every committed pair is read in the end."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.schemas import EmbeddingState
from ppd_serve.api.services import Services
from ppd_serve.errors import ActorUnavailable, EncoderUnavailable
from ppd_serve.storage.store import NewImage, NewPair
from tests.api.doubles import png
from tests.gateway.conftest import House, choices

P = "default"
PAIR = NewPair("a", NewImage(png(), "image/png", 8, 8), NewImage(png(), "image/png", 8, 8))


async def until_current(server: Services, user_id: str = "ann") -> EmbeddingState:
    async with asyncio.timeout(20):
        while True:
            state = (await server.users.get(P, user_id)).embedding
            if state is not None and state.status == "current":
                return state
            await asyncio.sleep(0.01)


async def test_who_takes_a_name_does_not_wait_for_the_old_ones_reading(
    server: Services, house: House
) -> None:
    house.encoder.gate.clear()
    old = asyncio.create_task(server.preferences.add(P, "ann", choices("old"), None))
    await house.encoder.began.wait()
    house.store.delete_user(P, "ann")  # through another gateway: ours goes on reading
    house.encoder.began.clear()
    new = asyncio.create_task(server.preferences.add(P, "ann", choices("new", "er"), None))
    async with asyncio.timeout(20):
        await house.encoder.began.wait()
    draw = asyncio.create_task(
        server.generations.draw(P, GenerateIn(prompt="a", user_id="ann"), None)
    )
    house.encoder.gate.set()
    assert (await new).embedding.pairs_used == 2
    assert (await draw).users[0].pairs_used == 2
    assert (await old).embedding.status == "pending"


async def test_the_newest_of_several_unread_versions_is_read(house: House) -> None:
    house.encode_wait_s = 0.05
    server = house.open()
    async with server.running:
        house.encoder.gate.clear()
        for prompt in ("a", "b"):
            answer = await server.preferences.add(P, "ann", choices(prompt), None)
            assert answer.embedding.status == "pending"
        house.encoder.gate.set()
        assert (await until_current(server)).pairs_used == 2


async def test_a_deleted_pair_is_forgotten_though_an_older_reading_was_still_wanted(
    house: House,
) -> None:
    house.encode_wait_s = 0.05
    server = house.open()
    async with server.running:
        house.encoder.gate.clear()
        answer = await server.preferences.add(P, "ann", choices("a", "b"), None)
        await server.preferences.delete(P, "ann", answer.pair_ids[0])
        house.encoder.gate.set()
        assert (await until_current(server)).pairs_used == 1


async def test_a_reading_is_not_used_once_a_pair_of_it_is_deleted(
    server: Services, house: House
) -> None:
    house.encoder.gate.clear()
    post = asyncio.create_task(server.preferences.add(P, "ann", choices("a", "b"), None))
    await house.encoder.began.wait()
    pairs = (await server.preferences.page(P, "ann", None, 10)).pairs
    await server.preferences.delete(P, "ann", pairs[0].pair_id)
    house.encoder.gate.set()
    answer = await post
    assert (answer.embedding.status, answer.embedding.pairs_used) == ("current", 1)
    assert answer.profile == "likes 1"


async def test_what_an_earlier_process_left_unread_is_read(house: House) -> None:
    for user_id in ("ann", "bob"):
        house.store.add_pairs(P, user_id, [PAIR])
    server = house.open()
    async with server.running:
        for user_id in ("ann", "bob"):
            assert (await until_current(server, user_id)).pairs_used == 1


async def test_one_unreadable_user_does_not_keep_the_others_waiting(house: House) -> None:
    house.store.add_pairs(P, "ann", [PAIR])
    house.store.add_pairs(P, "bob", [PAIR])
    house.encoder.error = ActorUnavailable()
    server = house.open()
    async with server.running:
        async with asyncio.timeout(20):
            await house.encoder.began.wait()
        house.encoder.error = None
        await until_current(server, "bob")


@pytest.mark.parametrize(
    "values", [np.full((1, 4), np.nan), np.full((1, 4), np.inf), np.zeros(4)], ids=str
)
async def test_what_is_no_embedding_is_not_stored(
    server: Services, house: House, values: np.ndarray
) -> None:
    house.encoder.values = values.astype(np.float32)
    answer = await server.preferences.add(P, "ann", choices("a"), None)
    assert answer.embedding.status == "pending"
    with pytest.raises(EncoderUnavailable):
        await server.generations.draw(P, GenerateIn(prompt="a", user_id="ann"), None)
    assert house.store.get_embedding(P, "ann", "space") is None
    house.encoder.values = None
    await server.preferences.add(P, "bob", choices("a"), None)
    assert len(house.index.index) >= 1
    await until_current(server)
