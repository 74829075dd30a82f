"""The whole HTTP face over a real store, asked by its own schema."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from ppd_serve.api.app import create_app
from ppd_serve.keys import Scope
from ppd_serve.storage.store import Store
from tests.gateway.conftest import House
from tests.schema_check import assert_schema_is_kept


def test_every_answer_is_one_that_the_schema_promises(tmp_path: Path) -> None:
    with serving(opened(tmp_path)) as url:
        assert_schema_is_kept(url, examples=25)


def test_also_to_a_key_that_may_little(tmp_path: Path) -> None:
    store = opened(tmp_path)
    _, key = store.create_key("default", scopes=[Scope.READ], rate_per_minute=10)
    with serving(store) as url:
        assert {403, 429} <= assert_schema_is_kept(url, examples=3, key=key)
        assert 401 in assert_schema_is_kept(url, examples=1, key="wrong")


def opened(directory: Path) -> Store:
    return Store.open(f"sqlite:///{directory}/ppd.db", str(directory / "blobs"))


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """The URL of a whole gateway on a store."""
    house = House(store)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # whoever calls too early waits
        config = uvicorn.Config(create_app(house.open()), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
