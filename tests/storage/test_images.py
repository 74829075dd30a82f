from __future__ import annotations

import pytest

from ppd_serve.errors import Conflict, NotFound
from ppd_serve.storage.blobs import Blobs
from ppd_serve.storage.store import NewPair, Store
from tests.storage.places import Place, picture

P = "default"


def test_ids_are_random_and_content_is_stored_once(store: Store, place: Place) -> None:
    first = store.add_image(P, picture("same"))
    second = store.add_image(P, picture("same"))
    assert first.image_id != second.image_id and len(place.blobs()) == 1
    assert not place.blobs() & {first.image_id, second.image_id}
    found, data = store.read_image(P, first.image_id)
    assert found == first and data == b"same" and found.size == 4
    assert store.delete_image(P, first.image_id) is True
    assert store.delete_image(P, first.image_id) is False
    assert store.read_image(P, second.image_id)[1] == b"same"
    store.delete_image(P, second.image_id)
    assert place.blobs() == set()


def test_pictures_expire_unless_a_pair_uses_them(store: Store, place: Place) -> None:
    uploaded = store.add_image(P, picture("uploaded"))
    used = store.add_image(P, picture("used"))
    drawn = store.add_image(P, picture("drawn"), "generated")
    added = store.add_pairs(P, "ann", [NewPair("p", used.image_id, picture("inline"))])
    inline = store.list_pairs(P, "ann").pairs[0].rejected_image_id

    place.clock.pass_hours(23.9)
    assert store.sweep().images == 0
    place.clock.pass_hours(0.2)
    with pytest.raises(NotFound):  # before any sweep
        store.get_image(P, uploaded.image_id)
    with pytest.raises(NotFound):
        store.add_pairs(P, "ann", [NewPair("p", uploaded.image_id, used.image_id)])
    assert store.sweep().images == 1
    place.clock.pass_hours(6 * 24)
    assert store.sweep().images == 1
    with pytest.raises(NotFound):
        store.get_image(P, drawn.image_id)
    assert store.read_image(P, used.image_id)[1] == b"used"
    assert store.read_image(P, inline)[1] == b"inline"

    with pytest.raises(Conflict):
        store.delete_image(P, used.image_id)
    store.delete_pair(P, "ann", added.pair_ids[0])
    assert place.blobs() == set()


def test_a_picture_still_in_time_outlives_its_pair(store: Store, place: Place) -> None:
    uploaded = store.add_image(P, picture("uploaded"))
    added = store.add_pairs(P, "ann", [NewPair("p", uploaded.image_id, picture("inline"))])
    inline = store.list_pairs(P, "ann").pairs[0].rejected_image_id
    store.delete_pair(P, "ann", added.pair_ids[0])
    assert store.get_image(P, uploaded.image_id) == uploaded
    with pytest.raises(NotFound):
        store.get_image(P, inline)
    assert len(place.blobs()) == 1


def test_what_a_failed_commit_left_is_collected(store: Store, place: Place) -> None:
    kept = store.add_image(P, picture("kept"))
    Blobs(place.blob_url).put(b"nobody committed to this")
    assert store.sweep().orphans == 1
    assert store.read_image(P, kept.image_id)[1] == b"kept"
    Blobs(place.blob_url).put(b"nobody committed to this")
    store.add_image(P, picture("nobody committed to this"))
    assert store.sweep().orphans == 0


def test_a_deletion_cut_short_after_its_commit_is_finished_by_the_next(
    store: Store, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_pairs(P, "ann", [NewPair("p", picture("a"), picture("b"))])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_drop_doomed_blobs", lambda _self: 0)
        store.delete_user(P, "ann")
    assert len(place.blobs()) == 2
    assert store.delete_user(P, "ann") is None
    assert place.blobs() == set()


@pytest.mark.parametrize("url", ["memory://blobs-test", "directory"])
def test_blobs_on_any_file_system(url: str, tmp_path: object) -> None:
    blobs = Blobs(url if "://" in url else f"{tmp_path}/deep/er")
    digest = blobs.put(b"bytes")
    assert blobs.put(b"bytes") == digest and list(blobs.digests()) == [digest]
    assert blobs.get(digest) == b"bytes"
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.exists(digest) and list(blobs.digests()) == []
    with pytest.raises(FileNotFoundError):
        blobs.get(digest)
