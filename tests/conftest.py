"""For every test: the models here are tiny, and a second thread costs more than it brings, on a
busy machine a hundred times more (each little operation waits for both)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.storage.places import Postgres, postgres_binaries

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    server = Postgres(binaries)
    yield server
    server.remove()
