from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from ppd_serve.errors import NotFound
from ppd_serve.storage.store import Idempotency, NewPair, Store, UserKey
from tests.storage.places import Place, pair, picture

P = "default"


def test_a_user_is_created_once_and_anew_after_deletion(store: Store) -> None:
    first, created = store.put_user(P, "ann")
    assert created and first.version == 0 and first.pairs_total == 0
    again, created = store.put_user(P, "ann")
    assert not created and again == first == store.get_user(P, "ann")

    gone = store.delete_user(P, "ann")
    assert gone is not None and gone.incarnation == first.incarnation
    assert store.delete_user(P, "ann") is None
    with pytest.raises(NotFound):
        store.get_user(P, "ann")
    assert store.put_user(P, "ann")[0].incarnation != first.incarnation


def test_keys_of_many_users_come_in_one_look(store: Store) -> None:
    for number in range(3):
        store.add_pairs(P, f"u{number}", [pair()])
    first = store.get_user(P, "u0")
    store.put_embedding(P, "u0", first.incarnation, 1, "space", np.ones((1, 2)), 1, None)
    store.add_pairs(P, "u0", [pair("second")])

    keys = store.user_keys(P, ["u0", "u1", "nobody"], "space")
    assert set(keys) == {"u0", "u1"}
    assert keys["u0"] == UserKey(first.incarnation, 2, 2, 1)
    assert keys["u1"].embedding_version is None
    assert store.user_keys(P, ["u0"], "other space")["u0"].embedding_version is None
    # More than fit into one statement's parameters.
    assert set(store.user_keys(P, (f"u{n}" for n in range(70_000)), "space")) == {"u0", "u1", "u2"}
    assert store.user_ids(P, [first.incarnation, "gone"]) == {first.incarnation: "u0"}
    assert store.user_ids("other", [first.incarnation]) == {}


def test_nothing_crosses_projects(store: Store) -> None:
    here = store.add_pairs("one", "ann", [pair()])
    image_id = store.list_pairs("one", "ann").pairs[0].preferred_image_id
    with pytest.raises(NotFound):
        store.get_user("two", "ann")
    with pytest.raises(NotFound):
        store.read_image("two", image_id)
    with pytest.raises(NotFound):
        store.add_pairs("two", "bob", [NewPair("p", image_id, image_id)])
    assert store.delete_pair("two", "ann", here.pair_ids[0]) is None
    assert store.delete_image("two", image_id) is False
    store.add_pairs("two", "ann", [pair()])
    store.delete_user("two", "ann")
    assert len(store.load_pairs("one", "ann").pairs) == 1


def test_deletion_leaves_nothing_of_a_user(store: Store, place: Place) -> None:
    uploaded = store.add_image(P, picture("secret upload"))
    key = Idempotency("POST /users/ann/preferences", "key", "hash")
    added = store.add_pairs(
        P, "ann", [pair("secret"), NewPair("secret", uploaded.image_id, picture("r"))], key
    )
    store.finish_idempotent(P, key, {"profile": "secret"})
    store.put_embedding(P, "ann", added.incarnation, 1, "s", np.ones((1, 2)), 2, "secret")
    generation = store.create_generation(P, {"prompt": "secret"}, {"ann": added.incarnation})
    drawn = store.add_image(P, picture("drawn"), "generated", generation.generation_id)

    gone = store.delete_user(P, "ann")

    assert gone is not None and gone.generation_ids == [generation.generation_id]
    assert place.blobs() == set()
    for image_id in (uploaded.image_id, drawn.image_id):
        with pytest.raises(NotFound):
            store.get_image(P, image_id)
    with pytest.raises(NotFound):
        store.get_generation(P, generation.generation_id)
    assert store.get_embedding(P, "ann", "s") is None
    assert store.add_pairs(P, "ann", [pair()], key).replayed is False


def test_deletion_leaves_no_bytes_in_the_sqlite_files(tmp_path: Path) -> None:
    path = f"{tmp_path}/ppd.db"
    store = Place(f"sqlite:///{path}", str(tmp_path / "blobs")).open()
    store.add_pairs(P, "annabella", [pair("unmistakable")])

    def bytes_on_disk() -> bytes:
        return b"".join(Path(path + suffix).read_bytes() for suffix in ("", "-wal"))

    assert b"unmistakable" in bytes_on_disk()
    store.delete_user(P, "annabella")
    assert b"unmistakable" not in bytes_on_disk() and b"annabella" not in bytes_on_disk()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()


def test_deletion_spares_what_another_user_also_uses(store: Store, place: Place) -> None:
    store.add_pairs(P, "ann", [pair("same")])
    shared = store.list_pairs(P, "ann").pairs[0]
    store.add_pairs(P, "bob", [pair("same")])  # the same content, under ids of its own
    store.add_pairs(P, "cat", [NewPair("p", shared.preferred_image_id, shared.rejected_image_id)])
    generation = store.create_generation(
        P, {}, {name: store.get_user(P, name).incarnation for name in ("ann", "bob")}
    )
    store.delete_user(P, "ann")
    assert len(place.blobs()) == 2
    for name in ("bob", "cat"):
        assert store.load_pairs(P, name).pairs[0].preferred == b"same preferred"
    with pytest.raises(NotFound):  # the blend was half hers
        store.get_generation(P, generation.generation_id)
    store.delete_user(P, "bob")
    store.delete_user(P, "cat")
    assert place.blobs() == set()


def test_deletion_spares_what_was_drawn_for_others(store: Store, place: Place) -> None:
    store.put_user(P, "ann")
    bob = store.put_user(P, "bob")[0]
    drawn = {}
    for name, users in {"bob": {"bob": bob.incarnation}, "nobody": {}}.items():
        generation = store.create_generation(P, {}, users).generation_id
        image = store.add_image(P, picture(name), "generated", generation)
        drawn[generation] = image.image_id
    store.add_pairs(P, "ann", [NewPair("p", *drawn.values()), pair("hers")])

    store.delete_user(P, "ann")
    for generation, image_id in drawn.items():
        assert store.get_generation(P, generation).image_ids == [image_id]
        store.read_image(P, image_id)
    assert len(place.blobs()) == 2

    store.add_pairs(P, "ann", [NewPair("p", *drawn.values())])
    place.clock.pass_hours(7 * 24)
    store.delete_user(P, "ann")  # only her pair still kept them
    assert place.blobs() == set()
