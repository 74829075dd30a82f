"""What is tried again, after how long, and what an error says when it is not."""

from __future__ import annotations

import ssl

import httpx
import pytest

from ppd_client import (
    APIError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidInput,
    NotFound,
    PPDError,
    ServerError,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
)

OK = httpx.Response
STATE = {"space": "s", "version": 1, "pairs_used": 1, "status": "current"}
ADDED = {"user_id": "ann", "pair_ids": ["p"], "pairs_total": 1, "embedding": STATE}
PAIRS = [("fish", b"a", b"b")]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_connection_errors_and_busy_answers_are_tried_again_with_one_key(server, kind):
    server.says(httpx.ConnectError("refused"), httpx.ReadError("reset"))
    server.refuses(503, "queue-full", headers={"retry-after": "7"})
    server.refuses(429, "slow-down")
    server.says(OK(201, json=ADDED))
    if kind == "sync":
        added = server.client().add_preferences("ann", PAIRS)
    else:
        added = await server.async_client().add_preferences("ann", PAIRS)
    assert added.pair_ids == ["p"]
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) == 5 and len(keys) == 1
    assert len({request.content for request in server.requests}) == 1
    assert server.pauses[2] == 7.0  # as long as the server asked
    assert 0.1 < server.pauses[0] < 0.3 and 0.2 < server.pauses[1] < 0.6  # growing, with jitter


def test_each_call_has_a_key_of_its_own_unless_given(server):
    server.says(*[OK(201, json=ADDED) for _ in range(3)])
    client = server.client()
    client.add_preferences("ann", PAIRS)
    client.add_preferences("ann", PAIRS)
    client.add_preferences("ann", PAIRS, idempotency_key="mine")
    first, second, third = (r.headers["idempotency-key"] for r in server.requests)
    assert first != second and third == "mine"


def test_it_gives_up_after_the_last_retry(server):
    server.says(*[httpx.ConnectError("refused") for _ in range(3)])
    with pytest.raises(ConnectionFailed, match="GET /users/ann: refused") as caught:
        server.client(retries=2).get_user("ann")
    assert len(server.requests) == 3
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


def test_the_time_limit_is_the_callers(server):
    server.says(httpx.ReadTimeout("slow"))
    with pytest.raises(TimedOut):
        server.client().generate("fish")
    assert len(server.requests) == 1


def test_a_connection_that_never_stood_is_tried_again(server):
    server.says(httpx.ConnectTimeout("no route"), OK(204))
    server.client().delete_user("ann")
    assert len(server.requests) == 2


def test_a_longer_wait_than_a_minute_is_left_to_the_caller(server):
    server.refuses(503, "unavailable", headers={"retry-after": "3600"})
    with pytest.raises(Unavailable) as caught:
        server.client().get_user("ann")
    assert caught.value.retry_after == 3600
    assert server.pauses == []


@pytest.mark.parametrize("value", ["soon", "nan", "-1", "inf", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number_of_seconds_falls_back_to_backoff(server, value):
    server.refuses(503, "unavailable", headers={"retry-after": value})
    server.says(OK(204))
    server.client().delete_user("ann")
    assert len(server.pauses) == 1 and 0.1 < server.pauses[0] < 0.3


def test_a_retry_waits_for_its_own_first_try(server):
    server.says(httpx.ReadError("reset"))
    server.refuses(409, "conflict")  # the first try is still running under this key
    server.says(OK(201, json=ADDED))
    assert server.client().add_preferences("ann", PAIRS).pairs_total == 1


def test_a_first_try_that_takes_its_time_is_waited_for(server):
    """Reading choices may take half a minute; that is no reason to call them lost."""
    server.says(httpx.ReadError("reset"))
    for _ in range(30):
        server.refuses(409, "conflict")
    server.says(OK(201, json=ADDED))
    assert server.client(retries=1).add_preferences("ann", PAIRS).pairs_total == 1
    assert sum(server.pauses) > 30 and max(server.pauses) <= 2


def test_a_first_try_is_waited_for_no_longer_than_an_answer(server):
    server.says(httpx.ReadError("reset"))
    for _ in range(40):
        server.refuses(409, "conflict")
    with pytest.raises(Conflict):
        server.client(timeout=10).add_preferences("ann", PAIRS)
    assert 10 <= sum(server.pauses[1:]) < 12.5


def test_a_conflict_at_the_first_try_is_an_answer(server):
    server.refuses(409, "conflict")
    with pytest.raises(Conflict):
        server.client().add_preferences("ann", PAIRS)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "status, error",
    [
        (400, InvalidInput),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (405, InvalidInput),
        (409, Conflict),
        (413, TooLarge),
        (418, APIError),
        (422, InvalidInput),
        (499, APIError),
        (500, ServerError),
        (504, ServerError),
    ],
)
def test_refusals_are_raised_at_once_and_typed(server, status, error):
    server.refuses(
        status, "bad-image", detail="truncated", field="pairs.0", headers={"x-request-id": "r1"}
    )
    with pytest.raises(error) as caught:
        server.client().get_user("ann")
    problem = caught.value
    assert type(problem) is error and isinstance(problem, PPDError)
    assert (problem.status, problem.type, problem.detail) == (status, "bad-image", "truncated")
    assert (problem.field, problem.request_id) == ("pairs.0", "r1")
    assert str(problem) == f"{status} bad-image: pairs.0: truncated"
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"text"', b"\xff"])
def test_a_refusal_without_a_problem_document_is_still_typed(server, body):
    server.says(OK(404, content=body))
    with pytest.raises(NotFound, match="Not Found"):
        server.client().get_user("ann")


def test_health_is_asked_once(server):
    server.says(httpx.ConnectError("refused"))
    with pytest.raises(ConnectionFailed):
        server.client().healthz()
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_wait_ready_sits_out_a_start(server, kind):
    server.says(httpx.ConnectError("refused"), OK(502, text="proxy"))
    server.refuses(503, "unavailable", detail="encoder: loading")
    server.says(OK(200, json={}))
    if kind == "sync":
        server.client().wait_ready(timeout=60)
    else:
        await server.async_client().wait_ready(timeout=60)
    assert server.asked() == ["GET /readyz"] * 4
    assert len(server.pauses) == 3


def test_wait_ready_says_what_is_missing_when_time_is_up(server):
    server.refuses(503, "unavailable", detail="index: catching up")
    with pytest.raises(TimedOut, match="index: catching up"):
        server.client().wait_ready(timeout=0)


def test_errors_of_the_callers_own_are_not_dressed_up(server):
    server.says(ssl.SSLError("handshake"))
    with pytest.raises(ssl.SSLError):
        server.client().get_user("ann")
