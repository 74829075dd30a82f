"""Keys of a real store at a running gateway: soon known, soon forgotten; what counts as work."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.errors import StorageUnavailable
from ppd_serve.gateway.keys import FRESH_SECONDS, KnownKeys
from ppd_serve.gateway.running import Tasks, Threads
from ppd_serve.storage.store import Store
from tests.api.test_errors import is_problem
from tests.gateway.conftest import House
from tests.gateway.test_streams import until

BOAT = {"prompt": "a boat"}
DRAW = {**BOAT, "seed": 7}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def http(house: House, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    threads = Threads(1, "keys")
    services = dataclasses.replace(
        house.open(), keys=KnownKeys(house.store, threads, Tasks(), clock)
    )
    async with services.running:
        transport = httpx.ASGITransport(create_app(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client
    threads.close()


def use(http: httpx.AsyncClient, key: str) -> None:
    http.headers["Authorization"] = f"Bearer {key}"


async def test_a_key_is_known_soon_and_gone_soon(
    http: httpx.AsyncClient, clock: Clock, tmp_path: Path
) -> None:
    assert (await http.put("/users/ann")).status_code == 201  # no keys: everybody is at home
    elsewhere = Store.open(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs"))
    made, key = elsewhere.create_key("default")
    other, _ = elsewhere.create_key("default")
    clock.now += FRESH_SECONDS
    is_problem(await http.get("/users/ann"), 401, "unauthorized")
    use(http, key)
    assert (await http.get("/users/ann")).status_code == 200
    elsewhere.revoke_key(made.id)
    clock.now += FRESH_SECONDS
    is_problem(await http.get("/users/ann"), 401, "unauthorized")
    elsewhere.revoke_key(other.id)
    elsewhere.close()
    clock.now += FRESH_SECONDS
    del http.headers["Authorization"]
    is_problem(await http.get("/users/ann"), 401, "unauthorized")  # it does not open for everybody


async def test_keys_are_not_read_for_every_call(
    http: httpx.AsyncClient, house: House, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, keys = list[float](), house.store.keys
    monkeypatch.setattr(house.store, "keys", lambda: reads.append(clock.now) or keys())
    for seconds in (0.0, 0.5, 1.0):
        clock.now = 1000.0 + seconds * FRESH_SECONDS
        await asyncio.gather(*(http.get("/users/ann") for _ in range(5)))
    assert reads == [1000.0, 1000.0 + FRESH_SECONDS]


async def test_without_the_database_nobody_is_let_in_on_what_was_true(
    http: httpx.AsyncClient, house: House, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StorageUnavailable("The database is not available")

    assert (await http.get("/releases")).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(house.store, "keys", away)
        clock.now += FRESH_SECONDS
        is_problem(await http.get("/releases"), 503, "storage-unavailable")
        assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/releases")).status_code == 200


async def test_all_who_wait_share_one_reading_and_its_failure(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, keys = list[int](), house.store.keys

    def away() -> None:
        reads.append(1)
        raise StorageUnavailable("The database is not available")

    threads, tasks = Threads(1, "keys"), Tasks()
    known = KnownKeys(house.store, threads, tasks).known
    with monkeypatch.context() as patch:
        patch.setattr(house.store, "keys", away)
        told = await asyncio.gather(*(known() for _ in range(5)), return_exceptions=True)
        assert [type(error) for error in told] == [StorageUnavailable] * 5
        assert len(reads) == 1
    leaving = asyncio.create_task(known())
    staying = asyncio.create_task(known())
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == keys()
    threads.close()


@pytest.fixture
async def one_at_once(http: httpx.AsyncClient, house: House) -> httpx.AsyncClient:
    """A caller who may have one thing drawn at a time; drawings wait for ``gate``."""
    use(http, house.store.create_key("default", concurrency=1)[1])
    house.diffuser.gate.clear()
    return http


async def refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json=DRAW)
    is_problem(response, 429, "limit-exceeded")
    assert response.headers["retry-after"] == "1"
    assert response.headers["ratelimit"] == '"concurrency";r=0'


async def let_in(
    http: httpx.AsyncClient, path: str = "/generate", **headers: str
) -> httpx.Response:
    """The answer once there is room: nobody tells when a drawing without listeners has ended."""
    async with asyncio.timeout(60):
        while (response := await http.post(path, json=BOAT, headers=headers)).is_error:
            assert response.status_code == 429
            await asyncio.sleep(0.01)
    return response


@pytest.mark.parametrize("body", [DRAW, {**DRAW, "stream": True}])
async def test_a_call_counts_until_it_has_all(
    one_at_once: httpx.AsyncClient, house: House, body: dict[str, object]
) -> None:
    first = asyncio.create_task(one_at_once.post("/generate", json=body))
    await house.diffuser.began.wait()
    await refused(one_at_once)
    assert (await one_at_once.get("/users/nobody")).status_code == 404  # looking is no work
    house.diffuser.gate.set()
    assert (await first).status_code == 200
    assert (await one_at_once.post("/generate", json=DRAW)).status_code == 200


async def test_a_drawing_for_later_counts_until_it_ends(
    one_at_once: httpx.AsyncClient, house: House
) -> None:
    later = {"Prefer": "respond-async"}
    taken = await one_at_once.post("/generate", json=DRAW, headers=later)
    assert taken.status_code == 202
    await refused(one_at_once)
    house.diffuser.gate.set()
    events = await one_at_once.get(f"{taken.headers['location']}/events")  # to its end
    assert "event: done" in events.text
    assert (await one_at_once.post("/generate", json=DRAW)).status_code == 200


async def test_stopping_makes_room(one_at_once: httpx.AsyncClient, house: House) -> None:
    later = {"Prefer": "respond-async"}
    taken = await one_at_once.post("/generate", json=DRAW, headers=later)
    assert (await one_at_once.delete(taken.headers["location"])).status_code == 202
    house.diffuser.gate.set()
    assert (await one_at_once.post("/generate", json=DRAW)).status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/users/ann/questions"])
async def test_who_leaves_with_a_key_for_later_still_counts(
    one_at_once: httpx.AsyncClient, house: House, path: str
) -> None:
    key = {"Idempotency-Key": "k"}
    call = asyncio.create_task(one_at_once.post(path, json=BOAT, headers=key))
    await house.diffuser.began.wait()
    call.cancel()
    await asyncio.wait([call])
    await refused(one_at_once)
    house.diffuser.gate.set()
    assert (await let_in(one_at_once, path, **key)).is_success
    assert len(house.diffuser.asked) == 1


@pytest.mark.parametrize("path", ["/generate", "/users/ann/questions"])
async def test_who_leaves_makes_room(
    one_at_once: httpx.AsyncClient, house: House, path: str
) -> None:
    call = asyncio.create_task(one_at_once.post(path, json=BOAT))
    await house.diffuser.began.wait()
    call.cancel()
    await asyncio.wait([call])
    await until(lambda: house.diffuser.cancelled)
    house.diffuser.gate.set()
    assert (await let_in(one_at_once)).status_code == 200


async def test_a_failure_makes_room(one_at_once: httpx.AsyncClient, house: House) -> None:
    house.diffuser.gate.set()
    house.diffuser.error = StorageUnavailable()
    for _ in range(2):
        assert (await one_at_once.post("/generate", json=DRAW)).status_code == 503
    house.diffuser.error = None
    assert (await one_at_once.post("/generate", json={"steps": 1000})).status_code == 422
    assert (await one_at_once.post("/generate", json=DRAW)).status_code == 200
