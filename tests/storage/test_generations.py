from __future__ import annotations

import pytest

from ppd_serve.errors import Conflict, NotFound
from ppd_serve.storage.store import Store
from tests.storage.places import Place, picture

P = "default"


def test_a_record_goes_from_queued_to_its_end(store: Store) -> None:
    ann = store.put_user(P, "ann")[0]
    made = store.create_generation(P, {"prompt": "a fox", "n": 2}, {"ann": ann.incarnation})
    assert made.state == "queued" and made.user_ids == ["ann"] and made.image_ids == []
    assert store.set_generation(P, made.generation_id, "running")
    images = [
        store.add_image(P, picture(f"{n}"), "generated", made.generation_id).image_id
        for n in range(2)
    ]
    assert store.set_generation(P, made.generation_id, "done")
    record = store.get_generation(P, made.generation_id)
    assert record.state == "done" and record.image_ids == images
    assert record.request == {"prompt": "a fox", "n": 2} and record.error is None


def test_what_nobody_waits_for_is_running_from_the_start(store: Store) -> None:
    made = store.create_generation(P, {}, state="running")
    assert made.state == store.get_generation(P, made.generation_id).state == "running"


def test_an_ended_record_stays_ended_and_takes_no_late_picture(store: Store, place: Place) -> None:
    made = store.create_generation(P, {})
    assert store.set_generation(P, made.generation_id, "cancelled")
    assert not store.set_generation(P, made.generation_id, "done")
    with pytest.raises(Conflict):
        store.add_image(P, picture("late"), "generated", made.generation_id)
    assert store.get_generation(P, made.generation_id).state == "cancelled"
    assert store.sweep().orphans == 1 and place.blobs() == set()


def test_late_results_of_a_deleted_user_are_discarded(store: Store, place: Place) -> None:
    ann = store.put_user(P, "ann")[0]
    made = store.create_generation(P, {}, {"ann": ann.incarnation})
    store.delete_user(P, "ann")
    with pytest.raises(NotFound):
        store.add_image(P, picture("late"), "generated", made.generation_id)
    assert not store.set_generation(P, made.generation_id, "done")
    store.put_user(P, "ann")
    with pytest.raises(NotFound):  # another ann
        store.create_generation(P, {}, {"ann": ann.incarnation})


def test_failures_keep_their_reason(store: Store) -> None:
    made = store.create_generation(P, {})
    error = {"type": "generation-failed", "detail": "out of memory"}
    store.set_generation(P, made.generation_id, "failed", error)
    assert store.get_generation(P, made.generation_id).error == error
    with pytest.raises(NotFound):
        store.get_generation("other", made.generation_id)
