"""Nothing crosses projects, asked of every route: to whoever holds another project's key, an id is
as unknown as one that never was."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from ppd_serve.api.app import create_app
from tests.api.doubles import memory, png
from tests.api.walk import routes
from tests.gateway.conftest import House

# The server's own figures are of all projects, and have a scope of their own.
ROUTES = [route for route in routes(create_app(memory())) if route[1] != "/metrics"]
Ids = dict[str, str]
PICTURES = [{"b64_json": base64.b64encode(png(colour=c)).decode()} for c in ("red", "blue")]
PAIR = {"prompt": "her secret", "preferred": PICTURES[0], "rejected": PICTURES[1]}

NEVER = {
    "user_id": "nobody",
    "pair_id": "pair_" + "0" * 32,
    "image_id": "image_" + "0" * 32,
    "generation_id": "generation_" + "0" * 32,
    "question_id": "question_" + "0" * 32,
    "feedback_id": "feedback_" + "0" * 32,
    "code": "taste_" + "0" * 32,
    "drawn_id": "image_" + "1" * 32,
}
# What is sent to a route that takes a body; it names somebody's ids wherever it can.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/generate"): lambda ids: {"prompt": "a", "user_id": ids["user_id"]},
    ("POST", "/v1/images/generations"): lambda ids: {"prompt": "a", "user_id": ids["user_id"]},
    ("POST", "/images"): lambda ids: png(),
    ("POST", "/users/{user_id}/preferences"): lambda ids: {
        "pairs": [{**PAIR, "preferred": {"image_id": ids["image_id"]}}]
    },
    ("PUT", "/users/{user_id}"): lambda ids: None,
    ("POST", "/users/{user_id}/questions"): lambda ids: {"prompt": "a"},
    ("PUT", "/users/{user_id}/questions/{question_id}/answer"): lambda ids: {"choice": "left"},
    ("POST", "/users/{user_id}/feedback"): lambda ids: {"image_id": ids["drawn_id"], "liked": True},
    ("POST", "/users/{user_id}/taste-codes"): lambda ids: {},
}


class Client:
    """One project's caller."""

    def __init__(self, http: httpx.AsyncClient, key: str) -> None:
        self._http, self._headers = http, {"Authorization": f"Bearer {key}"}

    async def __call__(
        self, method: str, path: str, ids: Ids, body: Any = None, **headers: str
    ) -> httpx.Response:
        """``path`` may name ids. A route with a parameter or a body that is not known here is a
        ``KeyError``: it needs a case."""
        if body is None and method in ("POST", "PUT"):
            body = BODIES[method, path](ids)
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        return await self._http.request(
            method, path.format_map(ids), headers={**self._headers, **headers}, **content
        )


@pytest.fixture
async def clients(house: House) -> AsyncIterator[tuple[Client, Client]]:
    services = house.open()
    async with services.running:
        transport = httpx.ASGITransport(create_app(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            keys = (house.store.create_key(project)[1] for project in ("alpha", "beta"))
            alpha, beta = (Client(http, key) for key in keys)
            yield alpha, beta


async def settled(owner: Client) -> Ids:
    """The ids of everything that a project can have, two users among it."""
    for user_id in ("ann", "amy"):
        choices = "/users/{user_id}/preferences"
        added = await owner("POST", choices, {"user_id": user_id}, {"pairs": [PAIR]})
        assert added.json()["embedding"]["status"] == "current"
    image = await owner("POST", "/images", {}, png(colour="green"))
    drawn = await owner("POST", "/generate", {}, {"prompt": "her secret", "user_id": "ann"})
    ann, id_of = {"user_id": "ann"}, drawn.json()["images"][0]["image_id"]
    ask = await owner("POST", "/users/{user_id}/questions", ann, {"prompt": "her secret"})
    judged = {"image_id": id_of, "liked": True}
    liked = await owner("POST", "/users/{user_id}/feedback", ann, judged)
    code = await owner("POST", "/users/{user_id}/taste-codes", ann, {})
    return {
        "user_id": "ann",
        "drawn_id": id_of,
        "question_id": ask.json()["question_id"],
        "feedback_id": liked.json()["feedback_id"],
        "code": code.json()["code"],
        "pair_id": (await owner("GET", choices, {"user_id": "ann"})).json()["pairs"][0]["pair_id"],
        "image_id": image.json()["image_id"],
        "generation_id": drawn.json()["id"],
    }


async def seen(owner: Client, ids: Ids) -> dict[str, tuple[int, str]]:
    """Everything that can be looked at; links are signed anew each second."""
    answers = {path: await owner("GET", path, ids) for method, path in ROUTES if method == "GET"}
    return {
        path: (answer.status_code, re.sub(r"expires=\d+&signature=\w+", "", answer.text))
        for path, answer in answers.items()
    }


def told(answer: httpx.Response, ids: Ids) -> str:
    """An answer without the ids that were asked for."""
    text = answer.text
    for id in ids.values():
        text = text.replace(id, "ID")
    return text


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_strangers_id_is_one_that_never_was(
    clients: tuple[Client, Client], method: str, path: str
) -> None:
    owner, stranger = clients
    hers = await settled(owner)
    before = await seen(owner, hers)
    assert {status for status, _ in before.values()} == {200}

    never = await stranger(method, path, NEVER)
    answer = await stranger(method, path, hers)
    assert answer.status_code == never.status_code
    if answer.status_code >= 400:
        assert answer.status_code == 404 or answer.json()["field"]  # of a body that names an id
        assert told(answer, hers) == told(never, NEVER)
    assert method != "GET" or answer.status_code == 404
    for secret in (hers["pair_id"], hers["generation_id"], hers["code"], "her secret", "amy"):
        assert secret not in answer.text
    assert await seen(owner, hers) == before

    own = await owner(method, path, hers)
    assert own.status_code < 300, own.text  # so that what was refused above was hers indeed


async def test_a_running_drawing_is_ones_own(clients: tuple[Client, Client], house: House) -> None:
    owner, stranger = clients
    house.diffuser.gate.clear()
    later = {"Prefer": "respond-async"}
    taken = await owner("POST", "/generate", {}, {"prompt": "a"}, **later)
    hers = {"generation_id": taken.json()["id"]}
    for method, path in ROUTES:
        if path.startswith("/generations/"):
            answer = await stranger(method, path, hers)
            assert answer.status_code == 404
            assert told(answer, hers) == told(await stranger(method, path, NEVER), NEVER)
    house.diffuser.gate.set()
    heard = await owner("GET", "/generations/{generation_id}/events", hers)
    assert "event: done" in heard.text


async def test_neighbours_are_of_ones_own(clients: tuple[Client, Client], house: House) -> None:
    house.encoder.values = np.ones((1, 4), np.float32)  # all of one taste
    for client, names in zip(clients, (("ann", "amy"), ("ann", "bob", "ben")), strict=True):
        for name in names:
            ids = {"user_id": name}
            await client("POST", "/users/{user_id}/preferences", ids, {"pairs": [PAIR]})
    found = []
    for client in clients:
        near = await client("GET", "/users/{user_id}/neighbors?k=100", {"user_id": "ann"})
        found.append({neighbor["user_id"] for neighbor in near.json()["neighbors"]})
    assert found == [{"amy"}, {"bob", "ben"}]


async def test_an_idempotency_key_is_ones_own(clients: tuple[Client, Client]) -> None:
    owner, stranger = clients
    key = {"Idempotency-Key": "the-same"}
    for method, path, body in [
        ("POST", "/images", png()),
        ("POST", "/generate", {"prompt": "a", "seed": 7}),
        ("POST", "/users/{user_id}/preferences", {"pairs": [PAIR]}),
    ]:
        hers = await owner(method, path, {"user_id": "ann"}, body, **key)
        again = await owner(method, path, {"user_id": "ann"}, body, **key)
        others = await stranger(method, path, {"user_id": "ann"}, body, **key)
        assert hers.status_code == others.status_code < 300
        assert told(hers, {}) == told(again, {}) != told(others, {})


async def test_one_name_in_two_projects_is_two_people(clients: tuple[Client, Client]) -> None:
    owner, stranger = clients
    hers, before = await settled(owner), {}
    for client in clients:
        await client("POST", "/users/{user_id}/preferences", {"user_id": "ann"}, {"pairs": [PAIR]})
    before = await seen(owner, hers)
    assert (await stranger("DELETE", "/users/{user_id}", hers)).status_code == 204
    assert (await stranger("GET", "/users/{user_id}", hers)).status_code == 404
    assert await seen(owner, hers) == before


async def test_a_link_is_of_one_project(clients: tuple[Client, Client]) -> None:
    owner, _ = clients
    drawn = await owner("POST", "/generate", {}, {"prompt": "a", "response_format": "url"})
    link = drawn.json()["images"][0]["url"]
    assert (await owner._http.get(link)).status_code == 200  # without any key
    assert (await owner._http.get(link.replace("alpha", "beta"))).status_code == 403
