"""For every test: the models here are tiny, and a second thread costs more than it brings, on a
busy machine a hundred times more (each little operation waits for both)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppd_serve.storage.store import Store
from tests.storage.places import Place, Postgres, postgres_binaries

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    server = Postgres(binaries)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a store keeps its things: every test of the store runs on both databases."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ppd.db"
    else:
        url = request.getfixturevalue("postgres").create(f"t{uuid.uuid4().hex}")
    return Place(url, str(tmp_path / "blobs"))


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    store = place.open()
    yield store
    store.close()
