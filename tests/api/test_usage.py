"""Limits: what is counted, what is refused, and what a client is told. No time passes here unless
the test says so."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd_serve.api.app import create_app
from ppd_serve.api.auth import Access
from ppd_serve.api.services import Services
from ppd_serve.api.usage import Usage
from ppd_serve.errors import LimitExceeded
from ppd_serve.keys import ApiKey, digest
from tests.api.doubles import memory, png
from tests.api.test_errors import is_problem


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def usage(clock: Clock) -> Usage:
    return Usage(clock)


THREE = ApiKey("three", "p", rate_per_minute=3)
TWO_AT_ONCE = ApiKey("two", "p", concurrency=2)


def test_a_minute_has_so_many_calls(usage: Usage, clock: Clock) -> None:
    for seconds in (0, 10, 20):
        clock.now = 1000.0 + seconds
        usage.take(THREE, work=False)
    clock.now = 1030.5
    for _ in range(5):  # what is refused counts for nothing
        with pytest.raises(LimitExceeded) as caught:
            usage.take(THREE, work=False)
        assert caught.value.retry_after == 29.5
    clock.now += caught.value.retry_after
    usage.take(THREE, work=False)
    with pytest.raises(LimitExceeded) as caught:
        usage.take(THREE, work=False)
    assert caught.value.retry_after == 10


@given(st.lists(st.integers(0, 40), max_size=60))
def test_no_minute_has_more_and_no_call_is_refused_before(pauses: list[int]) -> None:
    clock = Clock()
    usage, let_in = Usage(clock), list[float]()
    for pause in pauses:
        clock.now += pause
        recent = sum(clock.now - at < 60 for at in let_in)
        try:
            usage.take(THREE, work=True)
        except LimitExceeded as error:
            assert recent == 3
            assert error.retry_after == let_in[-3] + 60 - clock.now
        else:
            assert recent < 3
            let_in.append(clock.now)


def test_so_much_work_at_once(usage: Usage) -> None:
    first, _ = usage.take(TWO_AT_ONCE, work=True), usage.take(TWO_AT_ONCE, work=True)
    with pytest.raises(LimitExceeded) as caught:
        usage.take(TWO_AT_ONCE, work=True)
    assert caught.value.retry_after
    usage.take(TWO_AT_ONCE, work=False).release()  # looking and stopping are always possible
    first.release()
    usage.take(TWO_AT_ONCE, work=True)
    with pytest.raises(LimitExceeded):
        usage.take(TWO_AT_ONCE, work=True)


def test_a_place_is_free_when_nobody_holds_it(usage: Usage) -> None:
    one = ApiKey("one", "p", concurrency=1)
    slot = usage.take(one, work=True)
    slot.hold()  # a drawing
    slot.release()  # its call
    with pytest.raises(LimitExceeded):
        usage.take(one, work=True)
    slot.release()
    usage.take(one, work=True)


def test_refused_for_one_limit_is_not_counted_for_the_other(usage: Usage) -> None:
    key = ApiKey("both", "p", rate_per_minute=2, concurrency=1)
    slot = usage.take(key, work=True)
    for _ in range(3):
        with pytest.raises(LimitExceeded):
            usage.take(key, work=True)
    slot.release()
    usage.take(key, work=True).release()
    with pytest.raises(LimitExceeded):
        usage.take(key, work=True)
    assert usage.headers(key)["RateLimit"].endswith('"concurrency";r=1')


def test_keys_do_not_share(usage: Usage) -> None:
    for name in "ab":
        for _ in range(3):
            usage.take(dataclasses.replace(THREE, id=name), work=True)
    for _ in range(100):
        usage.take(ApiKey("free", "p"), work=True)


def test_what_is_told(usage: Usage, clock: Clock) -> None:
    assert usage.headers(ApiKey("free", "p")) == {}
    key = ApiKey("both", "p", rate_per_minute=3, concurrency=2)
    assert usage.headers(key) == {
        "RateLimit": '"default";r=3;t=0, "concurrency";r=2',
        "RateLimit-Policy": '"default";q=3;w=60, "concurrency";q=2;qu="concurrent-requests"',
    }
    usage.take(key, work=True)
    clock.now += 10.5
    usage.take(key, work=False)
    assert usage.headers(key)["RateLimit"] == '"default";r=1;t=50, "concurrency";r=1'
    fewer = dataclasses.replace(key, rate_per_minute=1, concurrency=1)
    assert usage.headers(fewer)["RateLimit"] == '"default";r=0;t=60, "concurrency";r=0'


@pytest.fixture
def services(usage: Usage) -> Services:
    access = Access(b"secret", {"unlimited": "p"}, usage=usage)
    services = dataclasses.replace(memory(), access=access)
    services.keys.stored[digest("three")] = THREE  # type: ignore[attr-defined]
    services.keys.stored[digest("more")] = dataclasses.replace(  # type: ignore[attr-defined]
        THREE, id="more", rate_per_minute=100
    )
    return services


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def three(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://server", headers=bearer("three")
    ) as client:
        yield client


async def test_over_the_limit(three: httpx.AsyncClient, clock: Clock) -> None:
    for left in (2, 1, 0):
        response = await three.put("/users/ann")
        assert response.headers["ratelimit"] == f'"default";r={left};t=60'
        assert response.headers["ratelimit-policy"] == '"default";q=3;w=60'
    clock.now += 0.5
    refused = await three.get("/users/ann")
    is_problem(refused, 429, "limit-exceeded")
    assert refused.headers["retry-after"] == "60"  # rounded up: sooner would be refused again
    assert refused.headers["ratelimit"] == '"default";r=0;t=60'
    assert refused.headers["ratelimit-policy"] == '"default";q=3;w=60'
    assert (await three.get("/healthz")).status_code == 200
    clock.now += 60
    assert (await three.get("/users/ann")).status_code == 200


async def test_over_the_limit_as_openai_says_it(three: httpx.AsyncClient) -> None:
    for _ in range(3):
        assert (await three.get("/v1/models")).status_code == 200
    refused = await three.post("/v1/images/generations", json={"prompt": "a"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert refused.headers["ratelimit"] == '"default";r=0;t=60'
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")


async def test_every_answer_to_a_limited_key_says_where_it_stands(
    three: httpx.AsyncClient,
) -> None:
    async def ask(method: str, path: str, **more: object) -> httpx.Response:
        return await three.request(method, path, headers=bearer("more"), **more)  # type: ignore[arg-type]

    image = (await ask("POST", "/images", content=png())).json()["image_id"]
    answers = [
        await ask("GET", "/users/nobody"),
        await ask("POST", "/generate", json={"steps": 1000}),
        await ask("POST", "/generate", json={"prompt": "a"}),
        await ask("POST", "/generate", json={"prompt": "a", "stream": True}),
        await ask("GET", f"/images/{image}"),
    ]
    assert [answer.status_code for answer in answers] == [404, 422, 200, 200, 200]
    left = [answer.headers["ratelimit"].partition(";r=")[2] for answer in answers]
    assert left == [f"{calls};t=60" for calls in (98, 97, 96, 95, 94)]


async def test_others_hear_of_no_limit(three: httpx.AsyncClient) -> None:
    for headers in (bearer("unlimited"), bearer("unknown")):
        response = await three.get("/users/nobody", headers=headers)
        assert response.status_code in (401, 404)
        assert "ratelimit" not in response.headers and "ratelimit-policy" not in response.headers
