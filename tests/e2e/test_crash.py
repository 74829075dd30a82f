"""``kill -9`` of the server while pairs arrive, a torn index file, and a restart at once."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import pairs, until
from tests.e2e.server import Server

pytestmark = pytest.mark.e2e

WRITERS = 3


def test_every_acknowledged_pair_survives(release: Path, tmp_path: Path) -> None:
    server = Server(release, tmp_path).start()
    acknowledged: dict[str, list[str]] = {f"user{n}": [] for n in range(WRITERS)}

    def write(user_id: str) -> None:
        with server.client() as http:
            while True:
                try:
                    answer = http.post(f"/users/{user_id}/preferences", json=pairs(1, user_id))
                except httpx.HTTPError:
                    return  # the server is gone
                if answer.status_code == 201:
                    acknowledged[user_id] += answer.json()["pair_ids"]

    writers = [threading.Thread(target=write, args=(user_id,)) for user_id in acknowledged]
    for writer in writers:
        writer.start()
    until(lambda: all(len(ids) >= 5 for ids in acknowledged.values()))
    index = server.data / "index" / "users.index"
    until(index.exists)
    server.kill()
    for writer in writers:
        writer.join()
    index.write_bytes(index.read_bytes()[:-7])

    server.start()
    try:
        with server.client() as http:
            for user_id, ids in acknowledged.items():
                page = http.get(f"/users/{user_id}/preferences?limit=200").json()
                listed = [pair["pair_id"] for pair in page["pairs"]]
                assert set(ids) <= set(listed)
                body = {"prompt": "a boat", "user_id": user_id}
                used = http.post("/generate", json=body).json()["users"][0]
                assert used["pairs_used"] == len(listed)
            near = http.get("/users/user0/neighbors").json()["neighbors"]
            assert {user["user_id"] for user in near} == {"user1", "user2"}
    finally:
        assert server.stop() == 0
