"""Every test of the store runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppd_serve.storage.store import Store
from tests.storage.places import Place


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
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


@pytest.fixture
def second(store: Store, place: Place) -> Iterator[Store]:
    """Another process's store in the same place."""
    second = place.open()
    yield second
    second.close()
