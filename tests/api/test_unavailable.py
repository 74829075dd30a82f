"""What a client sees while a part of the server can't: 503, come back later; and later it can."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.errors import InvalidInput, QueueFull
from ppd_serve.gateway import full
from ppd_serve.storage import database
from ppd_serve.storage.store import Store
from tests.api.doubles import png
from tests.api.test_errors import is_problem
from tests.gateway.conftest import House

PICTURE = {"b64_json": base64.b64encode(png()).decode()}
PAIRS = {"pairs": [{"prompt": "a", "preferred": PICTURE, "rejected": PICTURE}]}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    return House(Store.open(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs")))


@pytest.fixture
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    """The real services, with the house's parts behind them."""
    services = house.open()
    async with services.running:
        transport = httpx.ASGITransport(create_app(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client


async def test_while_the_database_is_away(http: httpx.AsyncClient, tmp_path: Path) -> None:
    assert (await http.post("/users/ann/preferences", json=PAIRS)).status_code == 201
    writes = [
        ("PUT", "/users/bob", None),
        ("POST", "/users/bob/preferences", PAIRS),
        ("DELETE", "/users/ann", None),
        ("POST", "/generate", {"prompt": "a"}),
    ]
    other = sqlite3.connect(tmp_path / "ppd.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for method, path, body in writes:
        response = await http.request(method, path, json=body)
        is_problem(response, 503, "storage-unavailable")
        assert response.headers["retry-after"]
    assert (await http.get("/users/ann")).json()["pairs_total"] == 1
    assert (await http.get("/users/bob")).status_code == 404
    other.execute("ROLLBACK")
    other.close()
    answers = [await http.request(method, path, json=body) for method, path, body in writes]
    assert [answer.status_code for answer in answers] == [201, 201, 204, 200]


async def test_while_the_pictures_are_away(http: httpx.AsyncClient, tmp_path: Path) -> None:
    image = (await http.post("/images", content=png())).json()["image_id"]
    blobs, away = tmp_path / "blobs", tmp_path / "away"
    blobs.rename(away)
    blobs.write_text("a file where the directory was")
    for response in (
        await http.get(f"/images/{image}"),
        await http.post("/images", content=png(colour="blue")),
        await http.post("/users/ann/preferences", json=PAIRS),
    ):
        is_problem(response, 503, "storage-unavailable")
        assert response.headers["retry-after"]
    assert (await http.get("/users/ann")).status_code == 404
    blobs.unlink()
    away.rename(blobs)
    assert (await http.get(f"/images/{image}")).content == png()
    assert (await http.post("/users/ann/preferences", json=PAIRS)).status_code == 201


async def test_a_full_queue_is_worth_another_try(
    http: httpx.AsyncClient, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "SECONDS", 0.0)  # it is asked again once this is over
    house.diffuser.error = QueueFull("256 pictures are waiting", retry_after=3)
    response = await http.post("/generate", json={"prompt": "a"})
    is_problem(response, 503, "queue-full")
    assert response.headers["retry-after"] == "3"
    house.diffuser.error = None
    assert (await http.post("/generate", json={"prompt": "a"})).status_code == 200


async def test_too_many_pictures_for_this_server_are_not(
    http: httpx.AsyncClient, house: House
) -> None:
    house.diffuser.error = InvalidInput("at most 4 pictures at once", field="n")
    response = await http.post("/generate", json={"prompt": "a", "n": 8})
    is_problem(response, 422, "invalid-input", "n")
    assert "retry-after" not in response.headers
