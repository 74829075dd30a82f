"""Two of everything that may be more than one, on one database: nobody sees which answered."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import ppd_client
from tests.e2e.conftest import pairs, until
from tests.e2e.server import Server
from tests.storage.places import Postgres

pytestmark = pytest.mark.e2e

USERS = [f"user-{k}" for k in range(4)]
AT_ONCE = 8


@pytest.fixture(scope="module")
def http(
    release: Path, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("replicas")
    server = Server(
        release, directory,
        PPD_DATABASE_URL=postgres.create("replicas"), PPD_BLOB_URL=str(directory / "blobs"),
        PPD_LINK_SECRET="the same for all of them", PPD_GATEWAYS="2", PPD_ENCODER__REPLICAS="2",
        PPD_DIFFUSER__REPLICAS="2",
    )  # fmt: skip
    with server.start().client() as client:
        yield client
    assert server.stop() == 0, "\n".join(server.tail)


def draw(http: httpx.Client, **fields: object) -> bytes:
    answer = http.post("/generate", json={"prompt": "a boat", **fields})
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0]["b64_json"])


def test_everybody_gets_their_own_picture_from_whoever_draws_it(http: httpx.Client) -> None:
    def choose(user: str) -> None:
        added = http.post(f"/users/{user}/preferences", json=pairs(2, user))
        assert added.status_code == 201, added.text

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(choose, USERS))
        wanted = [{"user_id": user, "seed": seed} for user in USERS for seed in (1, 2)]
        at_once = list(pool.map(lambda fields: draw(http, **fields), wanted))
    alone = [draw(http, **fields) for fields in wanted]
    assert at_once == alone and len(set(alone)) == len(wanted)


def test_a_key_draws_once_wherever_it_is_sent(http: httpx.Client) -> None:
    def draw_once(_: int) -> httpx.Response:
        headers = {"Idempotency-Key": "once"}
        return http.post("/generate", json={"prompt": "a boat", "steps": 50}, headers=headers)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(draw_once, range(AT_ONCE)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    again = until(lambda: (a := draw_once(0)).status_code == 200 and a.json())
    assert {a.json()["id"] for a in answers if a.status_code == 200} <= {again["id"]}


def test_what_is_drawn_is_heard_and_stopped_from_anywhere(http: httpx.Client) -> None:
    long = {"seed": 7, "n": 4, "steps": 100}

    def heard_from_both(client: ppd_client.Client) -> bool:
        """Only the gateway that draws it tells of its steps."""
        kept, *others = [client.submit("a boat", **long).id for _ in range(4)]  # type: ignore[arg-type]

        def heard(_: int) -> tuple[bool, ppd_client.Done]:
            *before, last = client.events(kept)
            assert isinstance(last, ppd_client.Done)
            return any(isinstance(event, ppd_client.Step) for event in before), last

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(client.cancel, others))
            listening = [pool.submit(heard, k) for k in range(AT_ONCE)]
            steps, ends = zip(*(each.result() for each in listening), strict=True)
        for other in others:
            until(lambda id=other: client.generation(id).status == "cancelled")  # type: ignore[misc]
        pictures = [http.get(image.url or "").content for image in client.generation(kept).images]
        assert all([i.data for i in end.generation.images] == pictures for end in ends)
        return set(steps) == {True, False}

    with ppd_client.Client(str(http.base_url), timeout=300) as client:
        until(lambda: heard_from_both(client))
