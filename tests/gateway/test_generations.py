"""Drawing: whose taste, kept how, stopped by whom."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.services import Services
from ppd_serve.errors import (
    ActorUnavailable,
    Conflict,
    EncoderUnavailable,
    GenerationFailed,
    Gone,
    InvalidInput,
    NotFound,
    StorageUnavailable,
)
from ppd_serve.preferences.pairs import Pair
from ppd_serve.storage.values import Idempotency
from tests.api.doubles import png
from tests.gateway.conftest import House, choices
from tests.gateway.doubles import embedding

P = "default"
KEY = Idempotency("POST /generate", "k", "hash")


def ask(**fields: object) -> GenerateIn:
    return GenerateIn.model_validate({"prompt": "a boat", **fields})


async def test_nobody(server: Services, house: House) -> None:
    drawn = await server.generations.draw(P, ask(n=2, seed=2**32 - 1), None)
    assert [painted.seed for painted in drawn.images] == [2**32 - 1, 0]
    assert drawn.users == []
    assert house.diffuser.asked[0].users == []
    for painted in drawn.images:
        expected = png((16, 16), f"#{painted.seed % 4096:03x}")
        assert painted.png == expected
        assert await server.images.read(P, painted.image_id) == (expected, "image/png")
    record = house.store.get_generation(P, drawn.id)
    image_ids = [painted.image_id for painted in drawn.images]
    assert (record.state, record.image_ids) == ("done", image_ids)


async def test_one_user_is_drawn_for_with_the_newest_pairs(server: Services, house: House) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    await server.preferences.add(P, "ann", choices("b"), None)
    drawn = await server.generations.draw(P, ask(user_id="ann"), None)
    (used,) = drawn.users
    assert (used.personalized, used.version, used.pairs_used) == (True, 2, 2)
    ((values, weight),) = house.diffuser.asked[0].users
    np.testing.assert_array_equal(values, embedding([Pair("a", b"", b""), Pair("b", b"", b"")]))
    assert weight == 1.0


@pytest.mark.parametrize("trouble", ["away", "stale", "empty"])
async def test_the_database_stands_in_for_the_index(
    server: Services, house: House, trouble: str
) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    incarnation = house.store.user_keys(P, ["ann"], "space")["ann"].incarnation
    if trouble == "away":
        house.index.error = ActorUnavailable()
    else:
        house.index.restart()
    if trouble == "stale":
        house.index.index.put(f"{P}/{incarnation}", 0, np.ones((1, 4), np.float32))
    await server.generations.draw(P, ask(user_id="ann"), None)
    ((values, _),) = house.diffuser.asked[0].users
    np.testing.assert_array_equal(values, embedding([Pair("a", b"", b"")]))


async def test_a_blend(server: Services, house: House) -> None:
    for name in ("ann", "bob"):
        await server.preferences.add(P, name, choices(name), None)
    await server.users.put(P, "new")
    weights = [("ann", 0.5), ("bob", -1.0), ("new", 1.0), ("ann", 0.25)]
    users = [{"user_id": name, "weight": weight} for name, weight in weights]
    drawn = await server.generations.draw(P, ask(users=users, preference_scale=2), None)
    assert [(used.user_id, used.weight) for used in drawn.users] == weights
    assert [used.personalized for used in drawn.users] == [True, True, False, True]
    asked = house.diffuser.asked[0]
    assert [weight for _, weight in asked.users] == [0.5, -1.0, 0.25]
    assert asked.preference_scale == 2


async def test_scale_zero_is_nobodys_picture(server: Services, house: House) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    house.encoder.error = EncoderUnavailable()
    drawn = await server.generations.draw(P, ask(user_id="ann", preference_scale=0), None)
    assert house.diffuser.asked[0].users == []
    assert not drawn.users[0].personalized


async def test_a_pending_user_is_read_first(server: Services, house: House) -> None:
    house.encoder.error = ActorUnavailable()
    await server.preferences.add(P, "ann", choices("a"), None)
    with pytest.raises(EncoderUnavailable) as caught:
        await server.generations.draw(P, ask(user_id="ann"), None)
    assert caught.value.retry_after
    assert house.diffuser.asked == []
    house.encoder.error = None
    drawn = await server.generations.draw(P, ask(user_id="ann"), None)
    assert drawn.users[0].pairs_used == 1


async def test_who_is_unknown(server: Services) -> None:
    with pytest.raises(NotFound) as caught:
        await server.generations.draw(P, ask(user_id="ann"), None)
    assert caught.value.field == "user_id"
    await server.users.put(P, "ann")
    with pytest.raises(NotFound) as caught:
        both = [{"user_id": "ann"}, {"user_id": "bob"}]
        await server.generations.draw(P, ask(users=both), None)
    assert caught.value.field == "users.1.user_id"
    with pytest.raises(NotFound):
        await server.generations.draw("other", ask(user_id="ann"), None)
    with pytest.raises(Conflict):
        await server.generations.draw(P, ask(users=[{"user_id": "ann", "version": 3}]), None)


@pytest.mark.parametrize(
    ("fields", "size"),
    [({}, (16, 16)), ({"width": 32}, (32, 16)), ({"height": 16, "width": 16}, (16, 16))],
)
async def test_sizes(
    server: Services, house: House, fields: dict[str, int], size: tuple[int, int]
) -> None:
    await server.generations.draw(P, ask(**fields), None)
    assert (house.diffuser.asked[0].width, house.diffuser.asked[0].height) == size


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 17}, "width"),
        ({"height": 32}, "height"),
        ({"width": 16, "height": 17}, "height"),
        ({"width": 17, "height": 16}, "width"),
    ],
)
async def test_what_the_release_cannot_do(
    server: Services, fields: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await server.generations.draw(P, ask(**fields), None)
    assert caught.value.field == field


async def test_a_caller_that_leaves_stops_the_drawing(server: Services, house: House) -> None:
    house.diffuser.gate.clear()
    call = asyncio.create_task(server.generations.draw(P, ask(), None))
    await house.diffuser.began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(20):
        while not house.diffuser.cancelled:
            await asyncio.sleep(0.01)


async def test_with_a_key_it_runs_on_and_is_joined(server: Services, house: House) -> None:
    house.diffuser.gate.clear()
    first = asyncio.create_task(server.generations.draw(P, ask(), KEY))
    await house.diffuser.began.wait()
    second = asyncio.create_task(server.generations.draw(P, ask(), KEY))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(InvalidInput):
        await server.generations.draw(P, ask(n=2), Idempotency(KEY.route, KEY.key, "other"))
    house.diffuser.gate.set()
    drawn = await second
    later = await server.generations.draw(P, ask(), KEY)
    assert len(house.diffuser.asked) == 1
    assert later.id == drawn.id
    assert [(p.image_id, p.seed) for p in later.images] == [
        (p.image_id, p.seed) for p in drawn.images
    ]
    assert await server.images.read(P, later.images[0].image_id)


async def test_what_was_deleted_is_not_drawn_again_for_its_key(
    server: Services, house: House
) -> None:
    drawn = await server.generations.draw(P, ask(n=2), KEY)
    await server.images.delete(P, drawn.images[1].image_id)
    with pytest.raises(Gone, match="deleted since"):
        await server.generations.draw(P, ask(n=2), KEY)
    assert len(house.diffuser.asked) == 1


async def test_a_failure_is_recorded_and_its_key_is_free(server: Services, house: House) -> None:
    house.diffuser.error = GenerationFailed()
    with pytest.raises(GenerationFailed):
        await server.generations.draw(P, ask(), KEY)
    house.diffuser.error = None
    assert (await server.generations.draw(P, ask(), KEY)).images


async def test_a_claim_that_was_not_heard_of_does_not_keep_its_key(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = house.store.begin_idempotent

    def commits_and_fails(*args: Any) -> None:
        begin(*args)
        raise StorageUnavailable

    monkeypatch.setattr(house.store, "begin_idempotent", commits_and_fails)
    with pytest.raises(StorageUnavailable):
        await server.generations.draw(P, ask(), KEY)
    monkeypatch.undo()
    assert (await server.generations.draw(P, ask(), KEY)).images


@pytest.mark.parametrize("method", ["finish_idempotent", "release_idempotent"])
async def test_a_key_ends_though_the_database_was_away(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def away(*args: object) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(house.store, method, away)
    drawn = None
    if method == "finish_idempotent":
        drawn = await server.generations.draw(P, ask(), KEY)
    else:
        house.diffuser.error = GenerationFailed()
        with pytest.raises(GenerationFailed):
            await server.generations.draw(P, ask(), KEY)
        house.diffuser.error = None
    with pytest.raises(Conflict):
        await server.generations.draw(P, ask(), KEY)
    monkeypatch.undo()
    async with asyncio.timeout(20):
        while True:
            try:
                again = await server.generations.draw(P, ask(), KEY)
                break
            except Conflict:
                await asyncio.sleep(0.01)
    assert again.images
    assert drawn is None or again.id == drawn.id
