"""Keys made and revoked by ``ppd keys`` while the server runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import is_problem, until
from tests.e2e.server import Server

pytestmark = pytest.mark.e2e


@pytest.fixture
def own_server(release: Path, tmp_path: Path) -> Iterator[Server]:
    """No other test can call it once it has keys."""
    server = Server(release, tmp_path).start()
    yield server
    assert server.stop() == 0, "\n".join(server.tail)


def ppd_keys(server: Server, *words: str) -> str:
    command = [Path(sys.executable).with_name("ppd"), "keys", *words, "--data", server.data]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_keys_come_and_go_while_the_server_runs(own_server: Server) -> None:
    with own_server.client() as http:
        assert http.put("/users/ann").status_code == 201
        key = ppd_keys(own_server, "create", "--project", "default", "--rate-per-minute", "1000")
        until(lambda: http.get("/users/ann").status_code == 401)
        http.headers["Authorization"] = f"Bearer {key}"
        known = http.get("/users/ann")
        assert known.status_code == 200
        assert known.headers["ratelimit-policy"] == '"default";q=1000;w=60'  # through the proxy

        once = ppd_keys(
            own_server, "create", "--project", "other", "--scope", "read", "--rate-per-minute", "1"
        )
        other = {"Authorization": f"Bearer {once}"}
        until(lambda: http.get("/users/ann", headers=other).status_code == 404)
        refused = http.get("/users/ann", headers=other)
        is_problem(refused, 429, "limit-exceeded")
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
        is_problem(http.put("/users/ann", headers=other), 403, "forbidden")

        ppd_keys(own_server, "revoke", key.split("_")[1])
        until(lambda: http.get("/users/ann").status_code == 401)
        assert http.get("/healthz").status_code == 200
