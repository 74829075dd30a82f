"""A stand-in for the server: answers in order, and remembers what it was asked."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from ppd_client import AsyncClient, Client


class Server:
    """Gives one scripted answer per request; an exception is a broken connection.

    ``pauses`` are the seconds the client would have slept between them.
    """

    def __init__(self) -> None:
        self.answers: list[httpx.Response | Exception] = []
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def says(self, *answers: httpx.Response | Exception) -> None:
        self.answers += answers

    def refuses(self, status: int, type: str, *, headers: Any = None, **problem: Any) -> None:
        body = {"type": f"https://example.org/problems/{type}", "title": type, "status": status}
        kind = {"content-type": "application/problem+json"}
        self.says(httpx.Response(status, json=body | problem, headers=kind | (headers or {})))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert self.answers, f"unexpected {request.method} {request.url}"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        # afresh, because httpx ties a response to the client that read it
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def body(self) -> Any:
        """The JSON of the last request."""
        return json.loads(self.requests[-1].content)

    def asked(self) -> list[str]:
        return [f"{r.method} {r.url.raw_path.decode()}" for r in self.requests]

    def client(self, **settings: Any) -> Client:
        return Client("http://server", transport=httpx.MockTransport(self), **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        return AsyncClient("http://server", transport=httpx.MockTransport(self), **settings)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    async def pause(seconds: float) -> None:
        server.pauses.append(seconds)

    monkeypatch.setattr("ppd_client.client.time.sleep", server.pauses.append)
    monkeypatch.setattr("ppd_client.client.asyncio.sleep", pause)
    return server
