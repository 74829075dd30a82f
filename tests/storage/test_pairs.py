from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ppd_serve.errors import InvalidInput, NotFound
from ppd_serve.storage.blobs import Blobs
from ppd_serve.storage.store import Idempotency, NewPair, Store
from tests.storage.places import Place, pair, picture

P = "default"


def test_pairs_create_their_user_and_keep_arrival_order(store: Store) -> None:
    first = store.add_pairs(P, "ann", [pair("a"), pair("b")])
    second = store.add_pairs(P, "ann", [pair("c")])
    assert (first.version, first.pairs_total) == (1, 2)
    assert (second.version, second.pairs_total) == (2, 3)
    loaded = store.load_pairs(P, "ann")
    assert [p.prompt for p in loaded.pairs] == ["prompt a", "prompt b", "prompt c"]
    assert loaded.pairs[1].preferred == b"b preferred" and loaded.pairs[1].rejected == b"b rejected"
    assert (loaded.incarnation, loaded.version) == (second.incarnation, 2)


def test_pages_survive_deletions(store: Store) -> None:
    ids = store.add_pairs(P, "ann", [pair(str(n)) for n in range(7)]).pair_ids
    page = store.list_pairs(P, "ann", limit=3)
    assert [p.pair_id for p in page.pairs] == ids[:3]
    assert page.next is not None and re.fullmatch(r"[A-Za-z0-9_-]+", page.next)
    store.delete_pair(P, "ann", ids[2])  # the one that the cursor stands on
    store.delete_pair(P, "ann", ids[3])
    rest = store.list_pairs(P, "ann", page.next, limit=3)
    assert [p.pair_id for p in rest.pairs] == ids[4:] and rest.next is None
    late = store.add_pairs(P, "ann", [pair("late")]).pair_ids
    assert [p.pair_id for p in store.list_pairs(P, "ann", limit=200).pairs] == [
        *ids[:2],
        *ids[4:],
        *late,
    ]
    for cursor in ("", "x", "-1", "9" * 30):
        with pytest.raises(InvalidInput):
            store.list_pairs(P, "ann", cursor)
    with pytest.raises(NotFound):
        store.list_pairs(P, "nobody")


def test_deleting_a_pair_counts_as_a_change_once(store: Store, place: Place) -> None:
    ids = store.add_pairs(P, "ann", [pair("a"), pair("b")]).pair_ids
    user = store.delete_pair(P, "ann", ids[0])
    assert user is not None and (user.version, user.pairs_total) == (2, 1)
    assert len(place.blobs()) == 2
    assert store.delete_pair(P, "ann", ids[0]) is None
    assert store.delete_pair(P, "nobody", ids[1]) is None
    assert store.get_user(P, "ann").version == 2


def test_answers_that_tell_of_a_deleted_pair_are_made_anew(store: Store) -> None:
    done, running = (Idempotency("POST /users/ann/preferences", k, "hash") for k in "ab")
    pair_ids = store.add_pairs(P, "ann", [pair("a"), pair("b")], done).pair_ids
    store.finish_idempotent(P, done, {"profile": "likes a"})
    store.add_pairs(P, "ann", [pair("c")], running)
    store.add_pairs(P, "bob", [pair("d")], other := Idempotency("POST", "c", "hash"))
    store.finish_idempotent(P, other, {"profile": "likes d"})

    store.delete_pair(P, "ann", pair_ids[0])
    assert not store.finish_idempotent(P, running, {"profile": "likes a"})
    for key, total in ((done, 2), (running, 3)):
        again = store.add_pairs(P, "ann", [pair("never added")], key)
        assert again.replayed and again.answer is None and again.pairs_total == total
        assert store.finish_idempotent(P, key, {"profile": "likes b"})
        assert store.add_pairs(P, "ann", [], key).answer == {"profile": "likes b"}
    assert store.add_pairs(P, "bob", [], other).answer == {"profile": "likes d"}
    assert store.get_user(P, "ann").pairs_total == 2


def test_a_deleted_pair_leaves_no_bytes_in_the_sqlite_files(tmp_path: Path) -> None:
    path = f"{tmp_path}/ppd.db"
    store = Place(f"sqlite:///{path}", str(tmp_path / "blobs")).open()
    user = store.add_pairs(P, "ann", [pair("unmistakable"), pair("other")])
    store.put_embedding(P, "ann", user.incarnation, 1, "s", np.ones((1, 2)), 2, "extraordinary")
    store.delete_pair(P, "ann", user.pair_ids[0])
    on_disk = b"".join(Path(path + suffix).read_bytes() for suffix in ("", "-wal"))
    assert b"unmistakable" not in on_disk and b"extraordinary" not in on_disk
    store.close()


def test_all_pairs_of_a_call_are_stored_or_none(store: Store, place: Place) -> None:
    uploaded = store.add_image(P, picture("up"))
    with pytest.raises(NotFound) as error:
        store.add_pairs(
            P,
            "ann",
            [NewPair("fine", uploaded.image_id, picture("x")), NewPair("p", picture("y"), "img_z")],
        )
    assert error.value.field == "pairs.1.rejected.image_id"
    with pytest.raises(NotFound):
        store.get_user(P, "ann")
    assert store.sweep().orphans == 2  # x and y had been written before
    assert len(place.blobs()) == 1
    added = store.add_pairs(P, "ann", [NewPair("p", uploaded.image_id, uploaded.image_id)])
    assert added.version == 1
    assert store.load_pairs(P, "ann").pairs[0].rejected == b"up"


def test_a_picture_of_many_pairs_is_read_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One upload named in thousands of pairs would fill the memory of whoever reads them."""
    uploaded = store.add_image(P, picture("up"))
    store.add_pairs(P, "ann", [NewPair("p", uploaded.image_id, picture(f"{k}")) for k in range(9)])
    read: list[str] = []
    get = Blobs.get
    monkeypatch.setattr(Blobs, "get", lambda self, digest: read.append(digest) or get(self, digest))
    pairs = store.load_pairs(P, "ann").pairs
    assert len(read) == len(set(read)) == 10
    assert len({id(pair.preferred) for pair in pairs}) == 1


def test_threads_adding_to_one_user_lose_nothing(store: Store) -> None:
    def add(thread: int) -> list[str]:
        return [
            pair_id
            for number in range(6)
            for pair_id in store.add_pairs(P, "ann", [pair(f"{thread}.{number}")]).pair_ids
        ]

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(add, range(8)))
    user = store.get_user(P, "ann")
    assert (user.version, user.pairs_total) == (48, 48)
    listed = [p.pair_id for p in store.list_pairs(P, "ann", limit=200).pairs]
    assert sorted(listed) == sorted(pair_id for ids in added for pair_id in ids)
    for ids in added:
        assert [pair_id for pair_id in listed if pair_id in ids] == ids
    assert len(store.load_pairs(P, "ann").pairs) == 48


def test_blobs_shared_by_users_who_come_and_go_are_never_lost(store: Store, place: Place) -> None:
    """The same two contents are written, collected as orphans and deleted by many at once."""

    def come_and_go(name: str) -> None:
        for _ in range(8):
            store.add_pairs(P, name, [pair("shared")])
            assert store.load_pairs(P, name).pairs[0].preferred == b"shared preferred"
            store.delete_user(P, name)

    def sweep() -> None:
        for _ in range(8):
            store.sweep()

    with ThreadPoolExecutor(5) as pool:
        work = [pool.submit(come_and_go, name) for name in ("ann", "bob", "cat", "dan")]
        work.append(pool.submit(sweep))
        for done in work:
            done.result()
    assert place.blobs() == set()
