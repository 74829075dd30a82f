"""The index actor over its lives: whatever its file is, it ends equal to the database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from ppd_serve.actors import UserIndex
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.running import Threads
from ppd_serve.preferences.index import UserIndex as Index
from ppd_serve.storage.store import NewImage, NewPair, Store
from ppd_serve.storage.values import index_id
from tests.api.doubles import png

SPACE, SHAPE, P = "space", (1, 4), "default"
PAIR = NewPair("a", NewImage(png(), "image/png", 8, 8), NewImage(png(), "image/png", 8, 8))


def teach(store: Store, user_id: str, value: float) -> str:
    """A new pair and an embedding for it; the user's index id."""
    added = store.add_pairs(P, user_id, [PAIR])
    values = np.full(SHAPE, value, np.float32)
    assert store.put_embedding(
        P, user_id, added.incarnation, added.version, SPACE, values, added.pairs_total, None
    )
    return index_id(P, added.incarnation)


def actor(directory: Path) -> UserIndex:
    return UserIndex(str(directory), SPACE, SHAPE, save_seconds=0.01)


async def fed(store: Store, index: UserIndex) -> UserIndex:
    threads = Threads(1, "test")
    await Feed(store, threads, index, SPACE).sync()
    threads.close()
    return index


async def saved(directory: Path) -> None:
    async with asyncio.timeout(20):
        while not (directory / "users.index").exists():
            await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs"))


@pytest.mark.parametrize("file", ["kept", "missing", "torn", "garbage", "stale", "other space"])
async def test_a_restart_ends_equal_to_the_database(
    store: Store, tmp_path: Path, file: str
) -> None:
    directory = tmp_path / "index"
    ann, bob = teach(store, "ann", 1), teach(store, "bob", 2)
    await fed(store, actor(directory))
    await saved(directory)
    path = directory / "users.index"
    early = path.read_bytes()
    teach(store, "ann", 3)
    store.delete_user(P, "bob")
    eve = teach(store, "eve", 4)
    if file == "missing":
        path.unlink()
    elif file == "torn":
        path.write_bytes(early[:-5])
    elif file == "garbage":
        path.write_bytes(b"garbage")
    elif file == "stale":
        path.write_bytes(early)
    elif file == "other space":
        other = Index("another", *SHAPE)
        other.put(ann, 9, np.full(SHAPE, 9, np.float32))
        other.save(directory)
    index = await fed(store, actor(directory))
    version, values = await index.get(ann) or (0, np.zeros(SHAPE))
    assert (version, values[0, 0]) == (2, 3)
    assert await index.get(bob) is None
    assert await index.get(eve) is not None
    found = await index.search(np.ones(4, np.float32), 10, index_id(P, ""))
    assert {name for name, _ in found} == {ann, eve}


async def test_who_is_deleted_leaves_the_file_at_once(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "index"
    ann = teach(store, "ann", 1)
    index = await fed(store, actor(directory))
    await saved(directory)
    store.delete_user(P, "ann")
    await fed(store, index)
    assert await actor(directory).get(ann) is None  # loaded from the file alone


async def test_a_file_ahead_of_the_database_is_not_believed(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "index"
    foreign = Index(SPACE, *SHAPE)
    foreign.put("default/ghost", 1, np.ones(SHAPE, np.float32))
    foreign.sequence = 10_000
    foreign.save(directory)
    ann = teach(store, "ann", 1)
    index = await fed(store, actor(directory))
    assert await index.get("default/ghost") is None
    assert await index.get(ann) is not None
