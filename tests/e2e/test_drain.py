"""A server that is told to stop finishes what it has begun, also what nobody waits for."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import is_problem, until
from tests.e2e.server import Server

pytestmark = pytest.mark.e2e


def test_what_was_begun_is_finished(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPD_LOG_FORMAT", "json")
    server = Server(release, tmp_path).start()
    diffuser = server.actor("Diffuser")
    later = {"Prefer": "respond-async"}
    body = {"prompt": "a boat", "steps": 100}
    with server.client() as http:
        submitted = http.post("/generate", json=body, headers=later).json()["id"]
        os.kill(diffuser, signal.SIGSTOP)  # so that it lasts until we have looked around
        server.process.send_signal(signal.SIGTERM)
        until(lambda: http.get("/readyz").json()["detail"] == "server: draining")
        refused = http.post("/generate", json={"prompt": "a boat"})
        is_problem(refused, 503, "unavailable")
        assert refused.headers["retry-after"]
        assert http.get(f"/generations/{submitted}").json()["status"] in ("queued", "running")
        os.kill(diffuser, signal.SIGCONT)
    assert server.process.wait(300) == 0, "\n".join(server.tail)
    with sqlite3.connect(server.data / "ppd.db") as db:
        assert db.execute("select state from generations").fetchall() == [("done",)]
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)
