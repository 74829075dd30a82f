"""Pairs: committed is committed, whatever the encoder, the index and the caller do."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

from ppd_serve.api.schemas import PairIn, PreferencesIn, PreferencesOut
from ppd_serve.api.services import Services
from ppd_serve.errors import (
    ActorUnavailable,
    BadImage,
    Conflict,
    InvalidInput,
    NotFound,
    StorageUnavailable,
    Unavailable,
)
from ppd_serve.preferences.pairs import Pair
from ppd_serve.storage.values import Idempotency
from tests.gateway.conftest import House, choices
from tests.gateway.doubles import SPACE, embedding

P = "default"
KEY = Idempotency("POST /users/ann/preferences", "k", "hash")


async def again(server: Services) -> PreferencesOut:
    """The answer to a call with ``KEY`` that is repeated until the first one has ended."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await server.preferences.add(P, "ann", choices("a"), KEY)
            except Conflict:
                await asyncio.sleep(0.01)


async def test_pairs_become_an_embedding(server: Services, house: House) -> None:
    answer = await server.preferences.add(P, "ann", choices("a", "b"), None)
    assert answer.pairs_total == len(answer.pair_ids) == 2
    assert answer.embedding.model_dump() == {
        "space": SPACE, "version": 1, "pairs_used": 2, "status": "current",
    }  # fmt: skip
    assert answer.profile == "likes 2"
    user = await server.users.get(P, "ann")
    assert (user.embedding, user.profile) == (answer.embedding, "likes 2")
    stored = await server.users.embedding(P, "ann", None)
    right = embedding([Pair("a", b"", b""), Pair("b", b"", b"")])
    np.testing.assert_array_equal(stored.values, right)


async def test_a_dead_encoder_means_pending_and_is_tried_again(
    server: Services, house: House
) -> None:
    house.encoder.error = ActorUnavailable()
    answer = await server.preferences.add(P, "ann", choices("a"), None)
    assert (answer.embedding.status, answer.embedding.pairs_used) == ("pending", 0)
    house.encoder.error = None
    async with asyncio.timeout(20):
        while (await server.users.get(P, "ann")).embedding.status == "pending":  # type: ignore[union-attr]
            await asyncio.sleep(0.05)


async def test_a_slow_encoder_means_pending(house: House) -> None:
    house.encode_wait_s = 0.05
    server = house.open()
    async with server.running:
        house.encoder.gate.clear()
        answer = await server.preferences.add(P, "ann", choices("a"), None)
        assert answer.embedding.status == "pending"


async def test_no_error_after_the_commit(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object) -> None:
        raise StorageUnavailable

    for method in ("load_pairs", "put_embedding", "get_embedding", "finish_idempotent"):
        monkeypatch.setattr(house.store, method, away)
    answer = await server.preferences.add(P, "ann", choices("a"), KEY)
    assert answer.embedding.status == "pending"
    assert len((await server.preferences.page(P, "ann", None, 10)).pairs) == 1
    monkeypatch.undo()
    assert await again(server) == answer


async def test_a_commit_that_was_not_heard_of_does_not_keep_its_key(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pairs = house.store.add_pairs

    def commits_and_fails(*args: Any) -> None:
        add_pairs(*args)
        raise StorageUnavailable

    monkeypatch.setattr(house.store, "add_pairs", commits_and_fails)
    with pytest.raises(StorageUnavailable):
        await server.preferences.add(P, "ann", choices("a"), KEY)
    monkeypatch.undo()
    assert (await server.preferences.add(P, "ann", choices("a"), KEY)).pairs_total == 1


async def test_no_bug_after_the_commit_either(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ValueError

    for method in ("put_embedding", "finish_idempotent"):
        monkeypatch.setattr(house.store, method, broken)
    answer = await server.preferences.add(P, "ann", choices("a"), KEY)
    assert answer.embedding.status == "pending"
    monkeypatch.undo()
    assert (await again(server)).pair_ids == answer.pair_ids


async def test_encodes_of_one_user_coalesce(server: Services, house: House) -> None:
    house.encoder.gate.clear()
    first = asyncio.create_task(server.preferences.add(P, "ann", choices("0"), None))
    await house.encoder.began.wait()
    posts = [
        asyncio.create_task(server.preferences.add(P, "ann", choices(str(n)), None))
        for n in range(1, 9)
    ]
    async with asyncio.timeout(20):
        while (await server.users.get(P, "ann")).pairs_total < 9:
            await asyncio.sleep(0.01)
    house.encoder.gate.set()
    answers = [await post for post in (first, *posts)]
    assert house.encoder.read == [1, 9]
    assert {answer.embedding.pairs_used for answer in answers[1:]} == {9}
    assert (await server.users.embedding(P, "ann", None)).version == 9


async def test_a_late_encode_revives_nobody(server: Services, house: House) -> None:
    house.encoder.gate.clear()
    post = asyncio.create_task(server.preferences.add(P, "ann", choices("a"), None))
    await house.encoder.began.wait()
    await server.users.delete(P, "ann")
    house.encoder.gate.set()
    await post
    with pytest.raises(NotFound):
        await server.users.get(P, "ann")
    with pytest.raises(NotFound):
        await server.users.embedding(P, "ann", None)
    assert len(house.index.index) == 0


async def test_a_late_encode_is_not_the_next_incarnations(server: Services, house: House) -> None:
    house.encoder.gate.clear()
    post = asyncio.create_task(server.preferences.add(P, "ann", choices("old"), None))
    await house.encoder.began.wait()
    await server.users.delete(P, "ann")
    await server.users.put(P, "ann")
    house.encoder.gate.set()
    await post
    user = await server.users.get(P, "ann")
    assert (user.pairs_total, user.embedding) == (0, None)


async def test_a_caller_that_leaves_does_not_undo_a_commit(server: Services, house: House) -> None:
    house.encoder.gate.clear()
    post = asyncio.create_task(server.preferences.add(P, "ann", choices("a"), KEY))
    await house.encoder.began.wait()
    post.cancel()
    with pytest.raises(asyncio.CancelledError):
        await post
    with pytest.raises(Conflict):
        await server.preferences.add(P, "ann", choices("a"), KEY)
    house.encoder.gate.set()
    assert (await again(server)).pairs_total == 1


async def test_the_same_key_gives_the_same_answer(server: Services, house: House) -> None:
    first = await server.preferences.add(P, "ann", choices("a"), KEY)
    await server.preferences.add(P, "ann", choices("b"), None)
    assert await server.preferences.add(P, "ann", choices("a"), KEY) == first
    assert (await server.users.get(P, "ann")).pairs_total == 2
    with pytest.raises(InvalidInput):
        other = Idempotency(KEY.route, KEY.key, "another hash")
        await server.preferences.add(P, "ann", choices("z"), other)


async def test_a_bad_picture_stores_nothing(server: Services, house: House) -> None:
    good, bad = choices("a"), choices("b")
    bad.pairs[0].rejected.b64_json = base64.b64encode(b"text").decode()
    body = PreferencesIn(pairs=[good.pairs[0], bad.pairs[0]])
    with pytest.raises(BadImage) as caught:
        await server.preferences.add(P, "ann", body, None)
    assert caught.value.field == "pairs.1.rejected.b64_json"
    with pytest.raises(NotFound):
        await server.users.get(P, "ann")


async def test_pictures_by_id(server: Services) -> None:
    image_id = await server.images.add(
        P, base64.b64decode(choices("a").pairs[0].preferred.b64_json or ""), None
    )
    body = {"prompt": "a", "preferred": {"image_id": image_id}, "rejected": {"image_id": "none"}}
    with pytest.raises(NotFound) as caught:
        await server.preferences.add(
            P, "ann", PreferencesIn(pairs=[PairIn.model_validate(body)]), None
        )
    assert caught.value.field == "pairs.0.rejected.image_id"
    body["rejected"] = {"image_id": image_id}
    await server.preferences.add(P, "ann", PreferencesIn(pairs=[PairIn.model_validate(body)]), None)
    with pytest.raises(Conflict):
        await server.images.delete(P, image_id)


async def test_deleting_pairs_changes_the_taste(server: Services, house: House) -> None:
    answer = await server.preferences.add(P, "ann", choices("a", "b"), None)
    await server.preferences.delete(P, "ann", answer.pair_ids[0])
    async with asyncio.timeout(20):
        while (await server.users.get(P, "ann")).embedding.status == "pending":  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
    right = embedding([Pair("b", b"", b"")])
    np.testing.assert_array_equal((await server.users.embedding(P, "ann", None)).values, right)
    for _ in range(2):
        await server.preferences.delete(P, "ann", answer.pair_ids[1])
    with pytest.raises(NotFound):
        await server.users.embedding(P, "ann", None)
    assert len(house.index.index) == 0
    assert (await server.users.get(P, "ann")).embedding is None


async def test_a_pair_is_gone_from_the_index_when_the_call_says_so(
    server: Services, house: House
) -> None:
    answer = await server.preferences.add(P, "ann", choices("a", "b"), None)
    house.index.error = ActorUnavailable()
    house.encoder.gate.clear()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await server.preferences.delete(P, "ann", answer.pair_ids[0])
    house.index.error = None
    await server.preferences.delete(P, "ann", answer.pair_ids[0])
    assert len(house.index.index) == 0


async def test_neighbors_stay_in_the_project_and_among_the_living(
    server: Services, house: House
) -> None:
    for project, user_id in [(P, "ann"), (P, "bob"), (P, "eve"), ("other", "zoe")]:
        await server.preferences.add(project, user_id, choices("same"), None)
    await server.users.delete(P, "eve")
    found = (await server.users.neighbors(P, "ann", 10)).neighbors
    assert [near.user_id for near in found] == ["bob"]
    assert found[0].similarity == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(NotFound):
        await server.users.neighbors("other", "ann", 10)


@pytest.mark.parametrize("trouble", ["restarted", "away", "ahead"])
async def test_the_index_is_disposable(server: Services, house: House, trouble: str) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    if trouble == "restarted":
        house.index.restart()
    elif trouble == "ahead":  # loaded from another database's file
        house.index.restart()
        house.index.index.put("default/ghost", 9, np.ones((1, 4), np.float32))
        house.index.index.sequence = 10_000
    else:
        house.index.error = ActorUnavailable()
    answer = await server.preferences.add(P, "bob", choices("a"), None)
    assert answer.embedding.status == "current"
    house.index.error = None
    async with asyncio.timeout(20):
        while await server.status.missing() or len(house.index.index) != 2:
            await asyncio.sleep(0.05)
    found = (await server.users.neighbors(P, "ann", 10)).neighbors
    assert [near.user_id for near in found] == ["bob"]
