"""What a part raises, and what becomes of it, as the gateway sees it through a real Ray actor."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ppd_serve.errors import ActorUnavailable, PPDError
from ppd_serve.local_ray import start_ray
from ppd_serve.serve_app import Remote
from tests.api.doubles import every_error

pytestmark = pytest.mark.slow


class Part:
    async def get(self, id: str) -> None:
        """Raise the error class of this name, or die."""
        if id == "die":
            os._exit(1)
        for cls in every_error():
            if cls.__name__ == id:
                raise cls("why", field="where", retry_after=7.0)
        raise RuntimeError("a bug with a password in it")


@pytest.fixture(scope="module")
def actors() -> Iterator[Any]:
    # Not under pytest's own directory: a socket's path must be short.
    scratch = tempfile.TemporaryDirectory(prefix="ppd-", ignore_cleanup_errors=True)
    with scratch as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        start_ray(place)
        yield ray.remote(num_cpus=0)(Part)
        ray.shutdown()


@pytest.fixture(scope="module")
def remote(actors: Any) -> Remote:
    return Remote(actors.remote())


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
async def test_every_error_class_survives_the_trip(remote: Remote, cls: type[PPDError]) -> None:
    with pytest.raises(PPDError) as caught:
        await remote.get(cls.__name__)
    error = caught.value
    assert type(error) is cls
    assert (error.detail, error.field, error.retry_after) == ("why", "where", 7.0)


async def test_a_bug_in_a_part_tells_nothing(remote: Remote) -> None:
    with pytest.raises(PPDError) as caught:
        await remote.get("bug")
    assert (type(caught.value), caught.value.status) == (PPDError, 500)
    assert "password" not in str(caught.value)


async def test_a_part_that_dies_is_unavailable(actors: Any) -> None:
    remote = Remote(actors.remote())
    for _ in range(2):
        with pytest.raises(ActorUnavailable) as caught:
            await remote.get("die")
        assert caught.value.retry_after
