"""Past versions of a taste, and codes that stand for one without saying whose it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import pytest

from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.loop_schemas import TasteCodeIn
from ppd_serve.api.services import Services
from ppd_serve.errors import Conflict, InvalidInput, NotFound, StorageUnavailable
from ppd_serve.preferences.pairs import Pair
from ppd_serve.storage.store import NewImage, NewPair, UserKey
from ppd_serve.storage.values import Idempotency
from tests.api.doubles import png
from tests.gateway.conftest import House, choices
from tests.gateway.doubles import SPACE, embedding

P = "default"
WHO = "unmistakable-ann"


async def teach(server: Services, *prompts: str) -> list[str]:
    """One version for each; the pairs."""
    found = []
    for prompt in prompts:
        found += (await server.preferences.add(P, WHO, choices(prompt), None)).pair_ids
    return found


async def share(server: Services, version: int | None = None) -> str:
    return (await server.taste_codes.add(P, WHO, TasteCodeIn(version=version), None)).code


def ask(*users: dict[str, object], **fields: object) -> GenerateIn:
    return GenerateIn.model_validate({"prompt": "a boat", "users": list(users), **fields})


def read(*prompts: str) -> np.ndarray:
    return embedding([Pair(prompt, b"", b"") for prompt in prompts])


async def test_versions_are_listed_and_read(server: Services) -> None:
    await teach(server, "a", "b", "c")
    values = (await server.users.embedding(P, WHO, 2)).values
    np.testing.assert_array_equal(values, read("a", "b"))
    page = await server.users.embeddings(P, WHO, None, 2)
    assert [(one.version, one.pairs_used) for one in page.embeddings] == [(3, 3), (2, 2)]
    rest = await server.users.embeddings(P, WHO, page.next, 2)
    assert [one.version for one in rest.embeddings] == [1] and rest.next is None
    with pytest.raises(NotFound) as caught:
        await server.users.embedding(P, WHO, 4)
    assert caught.value.field == "version"
    with pytest.raises(InvalidInput):
        await server.users.embeddings(P, WHO, "x", 2)


async def test_a_version_is_drawn_with(server: Services, house: House) -> None:
    await teach(server, "a", "b")
    users = [{"user_id": WHO, "version": version, "weight": 0.5} for version in (1, 2)]
    drawn = await server.generations.draw(P, ask(*users), None)
    assert [(used.version, used.pairs_used) for used in drawn.users] == [(1, 1), (2, 2)]
    old, new = house.diffuser.asked[0].users
    np.testing.assert_array_equal(old[0], read("a"))
    np.testing.assert_array_equal(new[0], read("a", "b"))
    for version in (0, 3):
        with pytest.raises(Conflict) as caught:
            both = {"user_id": WHO}, {"user_id": WHO, "version": version}
            await server.generations.draw(P, ask(*both), None)
        assert caught.value.field == "users.1.version"


@pytest.mark.parametrize("was_read", [True, False])
async def test_a_version_is_not_a_newer_one(
    house: House, monkeypatch: pytest.MonkeyPatch, was_read: bool
) -> None:
    """Another process adds a pair, and reads it, just after we looked which version is newest."""
    server = house.open()  # its loops never run
    user_keys, store, pictures = house.store.user_keys, house.store, [png(), png(colour="blue")]

    def add(prompt: str, is_read: bool) -> None:
        pair = NewPair(prompt, *(NewImage(data, "image/png", 8, 8) for data in pictures))
        added = store.add_pairs(P, WHO, [pair])
        if is_read:
            store.put_embedding(
                P, WHO, added.incarnation, added.version, SPACE, read(prompt), added.pairs_total, ""
            )

    def then_another(*args: Any) -> Mapping[str, UserKey]:
        keys = user_keys(*args)
        add("b", is_read=True)
        return keys

    add("a", is_read=was_read)
    monkeypatch.setattr(store, "user_keys", then_another)
    call = server.generations.draw(P, ask({"user_id": WHO, "version": 1}), None)
    if was_read:
        (used,) = (await call).users
        assert (used.version, used.pairs_used) == (1, 1)
        ((values, _),) = house.diffuser.asked[0].users
        np.testing.assert_array_equal(values, read("a"))
    else:
        with pytest.raises(Conflict):
            await call


async def test_a_version_that_has_read_a_deleted_pair_is_gone(
    server: Services, house: House
) -> None:
    _, second = await teach(server, "a", "b")
    before, after = await share(server, 1), await share(server, 2)
    await server.preferences.delete(P, WHO, second)
    await server.generations.draw(P, ask({"taste_code": before}), None)
    await server.generations.draw(P, ask({"user_id": WHO, "version": 1}), None)
    for request in house.diffuser.asked:
        ((values, _),) = request.users
        np.testing.assert_array_equal(values, read("a"))
    with pytest.raises(Conflict):
        await server.generations.draw(P, ask({"user_id": WHO, "version": 2}), None)
    with pytest.raises(NotFound):
        await server.generations.draw(P, ask({"taste_code": after}), None)


async def test_a_code_stands_for_its_version(server: Services, house: House) -> None:
    await teach(server, "a")
    code = await share(server)
    await teach(server, "b")
    await server.preferences.add(P, "bob", choices("c"), None)
    blend = ask({"taste_code": code, "weight": -0.5}, {"user_id": "bob"})
    await server.generations.draw(P, blend, None)
    (shared, weight), (own, _) = house.diffuser.asked[0].users
    np.testing.assert_array_equal(shared, read("a"))
    np.testing.assert_array_equal(own, read("c"))
    assert weight == -0.5
    newer = await share(server)
    assert newer != code
    listed = (await server.taste_codes.list(P, WHO)).taste_codes
    assert [(one.code, one.version) for one in listed] == [(code, 1), (newer, 2)]


async def test_a_code_tells_nobody_whose_it_is(server: Services, house: House) -> None:
    await teach(server, "a")
    code = await share(server)
    assert WHO not in code
    body = ask({"taste_code": code}, stream=True)
    watched = await server.generations.stream(P, body, None, 1)
    told = [str(entry) for entry in [entry async for entry in watched.entries]]
    recorded = await server.generations.get(P, watched.id)
    (used,) = recorded.users
    assert used.personalized and used.user_id is None
    assert used.taste_code == f"…{code[-6:]}"
    record = house.store.get_generation(P, watched.id)
    everything = [*told, str(recorded), json.dumps(record.request), json.dumps(record.answer)]
    for text in everything:
        assert WHO not in text and code not in text
    assert record.user_ids == []


async def test_a_code_works_in_its_project_alone(server: Services) -> None:
    await teach(server, "a")
    code = await share(server)
    with pytest.raises(NotFound) as caught:
        await server.generations.draw("other", ask({"taste_code": code}), None)
    assert caught.value.field == "users.0.taste_code"
    with pytest.raises(NotFound):
        await server.taste_codes.list("other", WHO)
    await server.taste_codes.delete("other", WHO, code)
    await server.taste_codes.delete(P, "bob", code)
    assert await server.generations.draw(P, ask({"taste_code": code}), None)


async def test_who_has_no_taste_cannot_share_it(server: Services) -> None:
    with pytest.raises(NotFound):
        await share(server)
    await server.users.put(P, WHO)
    with pytest.raises(NotFound):
        await share(server)
    await teach(server, "a")
    with pytest.raises(NotFound) as caught:
        await share(server, 2)
    assert caught.value.field == "version"


async def test_a_key_makes_one_code(server: Services) -> None:
    await teach(server, "a")
    key = Idempotency(f"POST /users/{WHO}/taste-codes", "k", "hash")
    codes = {(await server.taste_codes.add(P, WHO, TasteCodeIn(), key)).code for _ in range(2)}
    assert len(codes) == 1 == len((await server.taste_codes.list(P, WHO)).taste_codes)


async def withdrawn(server: Services, code: str, pair_id: str) -> None:
    await server.taste_codes.delete(P, WHO, code)


async def user_deleted(server: Services, code: str, pair_id: str) -> None:
    await server.users.delete(P, WHO)


async def pair_deleted(server: Services, code: str, pair_id: str) -> None:
    await server.preferences.delete(P, WHO, pair_id)


@pytest.mark.parametrize("end", [withdrawn, user_deleted, pair_deleted])
async def test_what_is_drawn_with_a_code_ends_with_it(
    server: Services, house: House, end: Callable[[Services, str, str], Awaitable[None]]
) -> None:
    (pair_id,) = await teach(server, "a")
    await server.preferences.add(P, "bob", choices("b"), None)
    code = await share(server)
    house.diffuser.gate.clear()
    call = asyncio.create_task(server.generations.draw(P, ask({"taste_code": code}), None))
    await house.diffuser.began.wait()
    house.diffuser.began.clear()
    other = asyncio.create_task(server.generations.draw(P, ask({"user_id": "bob"}), None))
    await house.diffuser.began.wait()
    await end(server, code, pair_id)
    with pytest.raises(NotFound) as caught:
        await call
    assert caught.value.field == "taste_code" and house.diffuser.cancelled == 1
    with pytest.raises(NotFound):
        await server.generations.draw(P, ask({"taste_code": code}), None)
    house.diffuser.gate.set()
    assert (await other).images


async def test_a_user_is_read_again_though_codes_cannot_be_looked_up(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed is followed up, whatever else fails after it."""
    first, _ = await teach(server, "a", "b")
    code = await share(server)
    house.diffuser.gate.clear()
    call = asyncio.create_task(server.generations.draw(P, ask({"taste_code": code}), None))
    await house.diffuser.began.wait()

    def away(*args: object) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(house.store, "taste_codes", away)
    house.encoder.began.clear()
    with pytest.raises(StorageUnavailable):
        await server.preferences.delete(P, WHO, first)
    async with asyncio.timeout(20):
        await house.encoder.began.wait()
    house.diffuser.gate.set()
    await asyncio.wait([call])


@pytest.mark.parametrize("end", [withdrawn, user_deleted, pair_deleted])
async def test_also_when_another_process_withdraws_it(
    server: Services, house: House, end: Callable[[Services, str, str], Awaitable[None]]
) -> None:
    """This one's jobs are not told: the record says so when the next picture is to be kept."""
    (pair_id,) = await teach(server, "a")
    code = await share(server)
    elsewhere = House(house.store, index=house.index).open()  # its loops never run
    house.diffuser.last.clear()
    watched = await server.generations.stream(P, ask({"taste_code": code}), None, 0)
    await end(elsewhere, code, pair_id)
    house.diffuser.last.set()
    *_, last = [entry async for entry in watched.entries]
    assert isinstance(getattr(last.event, "error", None), NotFound)
    record = await server.generations.get(P, watched.id)
    assert record.state == "cancelled" and not record.images
