from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ppd_serve.errors import NotFound
from ppd_serve.preferences.index import UserIndex
from ppd_serve.storage.store import Store, index_id
from tests.storage.places import pair

P = "default"


def values(number: float) -> np.ndarray:
    return np.full((2, 3), number, np.float32) + np.arange(3, dtype=np.float32)


def put(store: Store, user_id: str, incarnation: str, version: int, space: str = "s") -> bool:
    return store.put_embedding(
        P, user_id, incarnation, version, space, values(version), version, f"profile {version}"
    )


def test_an_embedding_comes_back_bit_for_bit(store: Store) -> None:
    user = store.add_pairs(P, "ann", [pair()])
    random = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    assert store.put_embedding(P, "ann", user.incarnation, 1, "s", random.T, 1, "likes é")
    stored = store.get_embedding(P, "ann", "s")
    assert stored is not None and stored.values.dtype == np.float32
    np.testing.assert_array_equal(stored.values, random.T)
    assert (stored.version, stored.pairs_used, stored.profile) == (1, 1, "likes é")


def test_a_late_encode_goes_neither_backwards_nor_revives(store: Store) -> None:
    first = store.add_pairs(P, "ann", [pair("a")])
    store.add_pairs(P, "ann", [pair("b")])
    assert put(store, "ann", first.incarnation, 2)
    assert not put(store, "ann", first.incarnation, 1)
    assert not put(store, "ann", first.incarnation, 2)
    stored = store.get_embedding(P, "ann", "s")
    assert stored is not None and stored.version == 2

    store.delete_user(P, "ann")
    assert not put(store, "ann", first.incarnation, 3)
    assert store.get_embedding(P, "ann", "s") is None
    second = store.add_pairs(P, "ann", [pair("c")])
    assert not put(store, "ann", first.incarnation, 3)
    assert put(store, "ann", second.incarnation, 1)


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_deleted_pair_takes_the_embedding_with_it(store: Store, pairs: int) -> None:
    user = store.add_pairs(P, "ann", [pair(str(n)) for n in range(pairs)])
    assert put(store, "ann", user.incarnation, 1)
    assert put(store, "ann", user.incarnation, 1, "other space")
    sequence = store.sequence()
    store.delete_pair(P, "ann", user.pair_ids[0])
    for space in ("s", "other space"):
        assert store.get_embedding(P, "ann", space) is None
        (change,) = store.changes(space, after=sequence)
        assert change.embedding is None and change.incarnation == user.incarnation

    store.add_pairs(P, "ann", [pair("more")])
    assert not put(store, "ann", user.incarnation, 1)  # encoded before, arrived after
    assert put(store, "ann", user.incarnation, 2)
    assert store.changes("s", after=sequence)[-1].embedding is not None


def versions(store: Store, space: str = "s", **page: int) -> list[int]:
    found = store.embedding_versions(P, "ann", space, page.get("before"), page.get("limit", 10))
    assert all(version.pairs_used == version.version for version in found)
    return [version.version for version in found]


def test_past_embeddings_stay_under_their_versions(store: Store) -> None:
    for version in (1, 2, 3, 4):
        user = store.add_pairs(P, "ann", [pair(str(version))])
        if version != 3:
            assert put(store, "ann", user.incarnation, version)
    put(store, "ann", user.incarnation, 2, "other space")
    for version in (1, 2, 4):
        stored = store.get_embedding(P, "ann", "s", version)
        assert stored is not None and (stored.version, stored.bits) == (version, None)
        assert stored.profile == f"profile {version}"
        np.testing.assert_array_equal(stored.values, values(version))
    for space, version in [("s", 3), ("s", 5), ("other space", 1)]:
        assert store.get_embedding(P, "ann", space, version) is None
    assert versions(store) == [4, 2, 1]
    assert versions(store, limit=2) == [4, 2] and versions(store, before=2) == [1]
    assert versions(store, "other space") == [2]
    with pytest.raises(NotFound):
        store.embedding_versions(P, "bob", "s", None, 10)
    store.delete_user(P, "ann")
    assert store.get_embedding(P, "ann", "s", 1) is None


@pytest.mark.parametrize(("deleted", "left"), [(1, []), (2, [1]), (4, [3, 2, 1])])
def test_versions_that_have_read_a_deleted_pair_go(
    store: Store, deleted: int, left: list[int]
) -> None:
    pair_ids = []
    for version in (1, 2, 3):
        user = store.add_pairs(P, "ann", [pair(str(version))])
        pair_ids += user.pair_ids
        assert put(store, "ann", user.incarnation, version)
        assert store.add_taste_code(P, "ann", user.incarnation, version).version == version
    pair_ids += store.add_pairs(P, "ann", [pair("unread")]).pair_ids
    store.delete_pair(P, "ann", pair_ids[deleted - 1])
    assert versions(store) == left
    assert sorted(code.version for code in store.list_taste_codes(P, "ann")) == sorted(left)
    assert not put(store, "ann", user.incarnation, 4)  # encoded before, arrived after
    assert put(store, "ann", user.incarnation, 5)
    assert versions(store) == [5, *left]


def test_bits_are_kept(store: Store) -> None:
    user = store.add_pairs(P, "ann", [pair()])
    store.put_embedding(P, "ann", user.incarnation, 1, "s", values(1), 1, None, 0.5)
    stored = store.get_embedding(P, "ann", "s")
    assert stored is not None and stored.bits == 0.5


def test_encodes_of_one_user_in_any_order_end_with_the_newest(store: Store) -> None:
    user = store.add_pairs(P, "ann", [pair()])
    versions = np.random.default_rng(1).permutation(np.arange(1, 25)).tolist()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda version: put(store, "ann", user.incarnation, version), versions))
    stored = store.get_embedding(P, "ann", "s")
    assert stored is not None and stored.version == 24
    np.testing.assert_array_equal(stored.values, values(24))


def follow(store: Store, index: UserIndex) -> None:
    while changes := store.changes(index.space, index.sequence, limit=3):
        for change in changes:
            name = index_id(change.project, change.incarnation)
            if change.embedding is None:
                index.delete(name)
            else:
                index.put(name, change.embedding.version, change.embedding.values)
            index.sequence = change.sequence


def test_an_index_catches_up_or_is_rebuilt_to_the_same(store: Store) -> None:
    incarnations, first = {}, {}
    for number in range(8):
        user = store.add_pairs(P, f"u{number}", [pair()])
        incarnations[f"u{number}"] = user.incarnation
        first[f"u{number}"] = user.pair_ids[0]
        assert put(store, f"u{number}", user.incarnation, 1)
        assert put(store, f"u{number}", user.incarnation, 1, "other space")
    behind = UserIndex("s", 2, 3)
    follow(store, behind)
    assert len(behind) == 8

    store.add_pairs(P, "u1", [pair("more")])
    put(store, "u1", incarnations["u1"], 2)
    store.delete_user(P, "u2")
    store.delete_user(P, "u3")
    unread = store.add_pairs(P, "u4", [pair("more")])
    store.delete_pair(P, "u4", unread.pair_ids[0])
    store.delete_pair(P, "u6", first["u6"])
    reread = store.add_pairs(P, "u5", [pair("more")])
    store.delete_pair(P, "u5", reread.pair_ids[0])
    assert put(store, "u5", reread.incarnation, 3)
    reborn = store.add_pairs(P, "u3", [pair("again")])
    put(store, "u3", reborn.incarnation, 1)

    rebuilt = UserIndex("s", 2, 3)
    for index in (behind, rebuilt):
        follow(store, index)
        assert len(index) == 6
        assert index.get(index_id(P, incarnations["u2"])) is None
        assert index.get(index_id(P, incarnations["u3"])) is None
        assert index.get(index_id(P, incarnations["u6"])) is None
        had_not_read_it = index.get(index_id(P, incarnations["u4"]))
        assert had_not_read_it is not None and had_not_read_it[0] == 1
        read = index.get(index_id(P, incarnations["u5"]))
        assert read is not None and read[0] == 3
        newest = index.get(index_id(P, incarnations["u1"]))
        assert newest is not None and newest[0] == 2
        assert index.sequence == store.sequence()


def test_a_follower_misses_nothing_that_commits_meanwhile(store: Store) -> None:
    users = [store.add_pairs(P, f"u{n}", [pair()]) for n in range(6)]

    def encode(number: int) -> None:
        for version in range(1, 7):
            put(store, f"u{number}", users[number].incarnation, version)

    index = UserIndex("s", 2, 3)
    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(encode, number) for number in range(6)]
        while not all(done.done() for done in work):
            follow(store, index)
    follow(store, index)
    for user in users:
        stored = index.get(index_id(P, user.incarnation))
        assert stored is not None and stored[0] == 6
