from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.doubles import png
from tests.e2e.server import Server
from tests.tiny_release import make_tiny_release


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release")
    make_tiny_release(path)
    return path


@pytest.fixture(scope="package")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that need no other: each uses users of its own."""
    server = Server(release, tmp_path_factory.mktemp("server")).start()
    yield server
    assert server.stop() == 0, "\n".join(server.tail)


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def pairs(count: int = 1, prompt: str = "a house") -> dict[str, Any]:
    """The body of a preferences call."""
    sides = [
        {"b64_json": base64.b64encode(png((32, 32), colour)).decode()} for colour in ("red", "blue")
    ]
    return {
        "pairs": [
            {"prompt": f"{prompt} {number}", "preferred": sides[0], "rejected": sides[1]}
            for number in range(count)
        ]
    }


def until(true: Callable[[], Any], seconds: float = 300) -> Any:
    """Ask again until the answer is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if answer := true():
                return answer
        except (httpx.HTTPError, LookupError):
            pass
        time.sleep(0.05)
    raise AssertionError("it never became true")


def is_problem(response: httpx.Response, status: int, kind: str, field: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["type"].rpartition(":")[2] == kind
    assert document.get("field") == field
    assert len(response.headers.get_list("x-request-id")) == 1
