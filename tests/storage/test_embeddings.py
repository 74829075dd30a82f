from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

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
    incarnations = {}
    for number in range(8):
        user = store.add_pairs(P, f"u{number}", [pair()])
        incarnations[f"u{number}"] = user.incarnation
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
        assert index.get(index_id(P, incarnations["u4"])) is None
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
