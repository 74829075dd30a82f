"""Retrying and waiting, written once for both clients.

A procedure is a generator: it yields a request (and is sent the response, or thrown the
transport's error) or a pause in seconds, and returns the result. Each client is a loop that does
what is yielded.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import httpx

from .call import Call
from .calls import readyz
from .errors import (
    APIError,
    Conflict,
    ConnectionFailed,
    TimedOut,
    Unavailable,
    UnexpectedAnswer,
    api_error,
)

T = TypeVar("T")
Steps = Generator[httpx.Request | float, httpx.Response | None, T]
Builder = Callable[[Call[Any]], httpx.Request]

LONGEST_PAUSE_S = 8.0
LONGEST_RETRY_AFTER_S = 60.0  # asked to wait longer, the caller should decide


def exchange(call: Call[T], build: Builder, retries: int) -> Steps[T]:
    """Send a call, again if need be, and read its answer."""
    request = build(call)  # once, so that every try carries the same Idempotency-Key
    patience = request.extensions["timeout"]["read"] or LONGEST_RETRY_AFTER_S
    attempt, looks, waited = 0, 0, 0.0
    while True:
        error: APIError | ConnectionFailed
        try:
            answer = yield request
            assert answer is not None
        except httpx.TimeoutException as cause:
            error = TimedOut(f"{call.method} {call.path}: {type(cause).__name__}")
            error.__cause__ = cause
            # The time limit is the caller's: only a connection that never stood is tried again.
            again = isinstance(cause, httpx.ConnectTimeout | httpx.PoolTimeout)
        except httpx.TransportError as cause:
            error = ConnectionFailed(f"{call.method} {call.path}: {cause or type(cause).__name__}")
            error.__cause__ = cause
            again = True
        else:
            if answer.is_success or answer.status_code in call.refusals:
                return call.read(answer)
            if not answer.is_error:
                raise UnexpectedAnswer(f"{call.method} {call.path}: status {answer.status_code}")
            error = api_error(answer)
            if _still_running(error, call, attempt) and waited < patience:
                # Nothing has failed: the answer is waited for as if it had not been lost.
                pause = pause_s(min(looks, 3))
                looks, waited = looks + 1, waited + pause
                yield pause
                continue
            again = isinstance(error, Unavailable)
        asked = getattr(error, "retry_after", None) or 0.0
        if not (call.retry and again and attempt < retries) or asked > LONGEST_RETRY_AFTER_S:
            raise error
        yield max(asked, pause_s(attempt))
        attempt += 1


def _still_running(error: APIError, call: Call[T], attempt: int) -> bool:
    """A retry conflicts with our own first try, whose answer was lost, under the same key."""
    return attempt > 0 and isinstance(error, Conflict) and "Idempotency-Key" in call.headers


def pause_s(attempt: int) -> float:
    """Exponential backoff with jitter, so that clients that failed together return apart."""
    return min(0.25 * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)


def until_ready(build: Builder, timeout_s: float) -> Steps[None]:
    """Ask ``/readyz`` until it says yes; TimedOut, with the reason, if it does not in time."""
    deadline = time.monotonic() + timeout_s
    attempt = 0
    while True:
        try:
            readiness = yield from exchange(readyz(), build, retries=0)
        except (ConnectionFailed, APIError) as error:
            missing = str(error)  # nobody listens yet, or a proxy answers in the server's place
        else:
            if readiness.ready:
                return
            missing = readiness.detail
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(f"not ready after {timeout_s:g} s: {missing}")
        yield min(pause_s(min(attempt, 2)), left)
        attempt += 1
