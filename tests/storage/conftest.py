"""What only the tests of the store need beside `place` and `store`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppd_serve.storage.store import Store
from tests.storage.places import Place


@pytest.fixture
def second(store: Store, place: Place) -> Iterator[Store]:
    """Another process's store in the same place."""
    second = place.open()
    yield second
    second.close()
