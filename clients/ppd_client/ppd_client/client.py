"""The two clients: the same calls, carried out at once or awaited."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, overload

import httpx

from . import calls, loop_calls
from .call import Call
from .calls import Drawings
from .exchange import Steps, exchange, until_ready
from .listening import AsyncListening, Listening
from .models import StoredPair, UserWeight
from .saving import save, save_awaited

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"


class _Endpoint(Generic[P, T]):
    """A call as a method: ``client.get_user(id)`` returns a User, the async client's awaits one."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self.build = build

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Call[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[P, Any]:
        if client is None:
            return self.build  # help(Client.get_user) shows the call's own docstring

        @functools.wraps(self.build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self.build(*args, **kwargs))

        return method


class _Calls:
    """Each call once; what it takes, returns and raises is written in ``calls``
    and ``loop_calls``."""

    put_user = _Endpoint(calls.put_user)
    get_user = _Endpoint(calls.get_user)
    delete_user = _Endpoint(calls.delete_user)
    add_preferences = _Endpoint(calls.add_preferences)
    preferences_page = _Endpoint(calls.preferences_page)
    delete_preference = _Endpoint(calls.delete_preference)
    ask = _Endpoint(loop_calls.ask)
    answer = _Endpoint(loop_calls.answer)
    give_feedback = _Endpoint(loop_calls.give_feedback)
    delete_feedback = _Endpoint(loop_calls.delete_feedback)
    embedding = _Endpoint(calls.embedding)
    embeddings_page = _Endpoint(loop_calls.embeddings_page)
    add_taste_code = _Endpoint(loop_calls.add_taste_code)
    taste_codes = _Endpoint(loop_calls.taste_codes)
    delete_taste_code = _Endpoint(loop_calls.delete_taste_code)
    neighbors = _Endpoint(calls.neighbors)
    upload_image = _Endpoint(calls.upload_image)
    get_image = _Endpoint(calls.get_image)
    delete_image = _Endpoint(calls.delete_image)
    generate = _Endpoint(calls.generate)
    generate_png = _Endpoint(calls.generate_png)
    submit = _Endpoint(calls.submit)
    generation = _Endpoint(calls.generation)
    cancel = _Endpoint(calls.cancel)
    releases = _Endpoint(calls.releases)
    healthz = _Endpoint(calls.healthz)
    readyz = _Endpoint(calls.readyz)


def _build(http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
    return http.build_request(
        call.method,
        call.path,
        params=call.params or None,
        json=call.json,
        content=call.content,
        headers=call.headers,
    )


def _settings(base_url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    headers = {"User-Agent": "ppd-client/0.1.0"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    # A server that is there accepts at once; only its answer may take long.
    limit = httpx.Timeout(timeout, connect=min(timeout, 5.0))
    return {"base_url": base_url, "headers": headers, "timeout": limit}


class Client(_Calls):
    """Talks to one server; use as a context manager, or call ``close()``. Safe to share by threads.

    base_url: where the server is; api_key: sent as a bearer token; timeout: seconds to wait for one
    answer; retries: how often to try again when the server cannot be reached or asks to wait (429,
    503), with growing pauses or as long as it asks; transport: httpx's, for tests.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_settings(base_url, api_key, timeout), transport=transport)
        self._retries = retries

    def preferences(self, user_id: str, *, page_size: int | None = None) -> Iterator[StoredPair]:
        """All of a user's pairs, oldest first, fetched page by page."""
        cursor: str | None = None
        while True:
            page = self.preferences_page(user_id, cursor, page_size)
            yield from page.pairs
            cursor = page.next
            if cursor is None:
                return

    def export_user(self, user_id: str, path: str | os.PathLike[str]) -> None:
        """Write everything the server holds about a user to ``path``, a ZIP archive: whole, or not
        at all. Raises NotFound."""
        save(self.send(calls.export_user(user_id)), path)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as the server can draw for users; TimedOut after ``timeout`` seconds."""
        self._run(until_ready(functools.partial(_build, self._http), timeout))

    def stream(
        self,
        prompt: str,
        *,
        user_id: str | None = None,
        users: Mapping[str, float] | Sequence[UserWeight] | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Drawings],
    ) -> Listening:
        """Draw, and iterate over what happens until ``Done``; raises what goes wrong. Who stops
        listening stops the drawing, unless it has a key: then the same call joins it."""
        call = calls.stream(
            prompt, user_id=user_id, users=users, idempotency_key=idempotency_key, **options
        )
        return Listening(lambda: self.send(call))

    def events(self, generation_id: str, last_event_id: int = 0) -> Listening:
        """Listen to a drawing, after the event that was heard last."""
        call = calls.events(generation_id, last_event_id)
        return Listening(lambda: self.send(call))

    def send(self, call: Call[T]) -> T:
        """Carry out one call."""
        steps = exchange(call, functools.partial(_build, self._http), self._retries)
        return self._run(steps, call.stream)

    def _run(self, steps: Steps[T], stream: bool = False) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, float):
                    time.sleep(step)
                    step = next(steps)
                    continue
                try:
                    answer = self._http.send(step, stream=stream)
                    if not answer.is_success:
                        answer.read()
                except httpx.TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncClient(_Calls):
    """``Client`` for asyncio: the same calls, awaited; ``preferences`` is an async iterator."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_settings(base_url, api_key, timeout), transport=transport)
        self._retries = retries

    async def preferences(
        self, user_id: str, *, page_size: int | None = None
    ) -> AsyncIterator[StoredPair]:
        """All of a user's pairs, oldest first, fetched page by page."""
        cursor: str | None = None
        while True:
            page = await self.preferences_page(user_id, cursor, page_size)
            for pair in page.pairs:
                yield pair
            cursor = page.next
            if cursor is None:
                return

    async def export_user(self, user_id: str, path: str | os.PathLike[str]) -> None:
        """Write everything the server holds about a user to ``path``, a ZIP archive: whole, or not
        at all. Raises NotFound."""
        await save_awaited(await self.send(calls.export_user(user_id)), path)

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as the server can draw for users; TimedOut after ``timeout`` seconds."""
        await self._run(until_ready(functools.partial(_build, self._http), timeout))

    def stream(
        self,
        prompt: str,
        *,
        user_id: str | None = None,
        users: Mapping[str, float] | Sequence[UserWeight] | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Drawings],
    ) -> AsyncListening:
        """Draw, and iterate over what happens until ``Done``; raises what goes wrong. Who stops
        listening stops the drawing, unless it has a key: then the same call joins it."""
        call = calls.stream(
            prompt, user_id=user_id, users=users, idempotency_key=idempotency_key, **options
        )
        return AsyncListening(lambda: self.send(call))

    def events(self, generation_id: str, last_event_id: int = 0) -> AsyncListening:
        """Listen to a drawing, after the event that was heard last."""
        call = calls.events(generation_id, last_event_id)
        return AsyncListening(lambda: self.send(call))

    async def send(self, call: Call[T]) -> T:
        """Carry out one call."""
        steps = exchange(call, functools.partial(_build, self._http), self._retries)
        return await self._run(steps, call.stream)

    async def _run(self, steps: Steps[T], stream: bool = False) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    step = next(steps)
                    continue
                try:
                    answer = await self._http.send(step, stream=stream)
                    if not answer.is_success:
                        await answer.aread()
                except httpx.TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
