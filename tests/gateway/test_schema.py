"""The whole HTTP face over a real store, asked by its own schema."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import uvicorn

from ppd_serve.api.app import create_app
from ppd_serve.storage.store import Store
from tests.gateway.conftest import House
from tests.schema_check import assert_schema_is_kept


def test_every_answer_is_one_that_the_schema_promises(tmp_path: Path) -> None:
    house = House(Store.open(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs")))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # whoever calls too early waits
        config = uvicorn.Config(create_app(house.open()), log_level="warning")
        server = uvicorn.Server(config)
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        serving.start()
        try:
            assert_schema_is_kept(f"http://127.0.0.1:{listening.getsockname()[1]}", examples=25)
        finally:
            server.should_exit = True
            serving.join()
