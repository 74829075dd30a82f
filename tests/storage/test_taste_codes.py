from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import select

from ppd_serve.errors import Conflict, NotFound
from ppd_serve.storage import taste_codes
from ppd_serve.storage.loop_records import GenerationCodeRecord
from ppd_serve.storage.store import Generation, Store, TasteCode
from tests.storage.places import PATIENCE, Halt, pair, picture, until_waiting

P = "default"


def share(store: Store, user_id: str = "ann", *, read: bool = True) -> TasteCode:
    """A code for a version that is read now."""
    user = store.add_pairs(P, user_id, [pair(user_id)])
    if read:
        numbers = np.ones((1, 2), np.float32)
        store.put_embedding(P, user_id, user.incarnation, user.version, "s", numbers, 1, None)
    return store.add_taste_code(P, user_id, user.incarnation, user.version)


def draw(store: Store, *codes: TasteCode) -> Generation:
    return store.create_generation(P, {}, {}, codes=[code.code for code in codes])


def test_a_code_is_found_in_its_project(store: Store) -> None:
    first, second, bobs = share(store), share(store), share(store, "bob")
    assert (first.version, second.version, first.user_id) == (1, 2, "ann")
    assert "ann" not in first.code and len({first.code, second.code, bobs.code}) == 3
    assert store.list_taste_codes(P, "ann") == [first, second]
    codes = [first.code, bobs.code, "taste_0"]
    assert store.taste_codes(P, codes) == {first.code: first, bobs.code: bobs}
    assert store.taste_codes("other", codes) == {}
    with pytest.raises(NotFound):
        store.list_taste_codes("other", "ann")


def test_only_a_stored_version_can_be_shared(store: Store) -> None:
    code = share(store)
    with pytest.raises(NotFound) as error:
        share(store, read=False)
    assert error.value.field == "version"
    store.delete_user(P, "ann")
    store.put_user(P, "ann")
    with pytest.raises(NotFound):
        store.add_taste_code(P, "ann", code.incarnation, 1)


def test_there_is_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taste_codes, "MOST_CODES", 2)
    first, _ = share(store), share(store)
    share(store, "bob")
    with pytest.raises(Conflict):
        share(store)
    store.delete_taste_code(P, "ann", first.code)
    share(store)


@pytest.mark.parametrize("how", ["withdrawn", "user deleted", "pair deleted"])
def test_what_is_drawn_with_a_code_ends_with_it(store: Store, how: str) -> None:
    code, other = share(store), share(store, "bob")
    running, done, others = draw(store, code, other), draw(store, code), draw(store, other)
    store.set_generation(P, running.generation_id, "running")
    kept = store.add_image(P, picture("kept"), "generated", done.generation_id)
    store.set_generation(P, done.generation_id, "done")
    if how == "withdrawn":
        store.delete_taste_code(P, "bob", code.code)  # not his
        store.delete_taste_code("other", "ann", code.code)
        assert store.taste_codes(P, [code.code])
        for _ in range(2):
            store.delete_taste_code(P, "ann", code.code)
    elif how == "user deleted":
        store.delete_user(P, "ann")
    else:
        store.delete_pair(P, "ann", store.list_pairs(P, "ann").pairs[0].pair_id)
    assert store.taste_codes(P, [code.code, other.code]) == {other.code: other}
    ended = store.get_generation(P, running.generation_id)
    assert (ended.state, (ended.error or {})["type"]) == ("cancelled", "not-found")
    with pytest.raises(Conflict):  # a late picture is not kept
        store.add_image(P, picture("late"), "generated", running.generation_id)
    with pytest.raises(NotFound):
        draw(store, other, code)
    # What was finished belongs to whoever drew it.
    assert store.get_generation(P, done.generation_id).image_ids == [kept.image_id]
    assert store.get_generation(P, others.generation_id).state == "queued"


def test_a_generation_does_not_say_whose_code_it_was(store: Store) -> None:
    assert draw(store, share(store)).user_ids == []


def test_who_draws_with_each_others_codes_can_be_deleted_at_once(store: Store) -> None:
    for _ in range(8):
        codes = {name: share(store, name) for name in ("ann", "bob")}
        for name, other in [("ann", "bob"), ("bob", "ann")] * 4:
            living = {name: codes[name].incarnation}
            store.create_generation(P, {}, living, codes=[codes[other].code])
        with ThreadPoolExecutor(2) as pool:
            for gone in pool.map(lambda name: store.delete_user(P, name), codes):
                assert gone is not None and len(gone.generation_ids) == 4


@pytest.mark.parametrize("how", ["withdrawn", "user deleted", "pair deleted"])
def test_what_another_process_just_begins_to_draw_with_a_code_ends_too(
    store: Store, second: Store, how: str
) -> None:
    code = share(store)
    (page,) = store.list_pairs(P, "ann").pairs
    withdrawals = {
        "withdrawn": lambda: second.delete_taste_code(P, "ann", code.code),
        "user deleted": lambda: second.delete_user(P, "ann"),
        "pair deleted": lambda: second.delete_pair(P, "ann", page.pair_id),
    }
    halt = Halt(store, "INSERT INTO generation_codes")  # by then the code has been seen alive
    with ThreadPoolExecutor(2) as pool:
        drawing = pool.submit(draw, store, code)
        halt.reach()
        withdrawing = pool.submit(withdrawals[how])
        until_waiting(store, withdrawing)
        halt.go_on()
        begun = drawing.result(PATIENCE)
        withdrawing.result(PATIENCE)
    assert store.get_generation(P, begun.generation_id).state == "cancelled"


def test_a_pair_and_another_user_can_be_deleted_at_once(store: Store, second: Store) -> None:
    ann, bob = share(store, "ann"), share(store, "bob")
    store.create_generation(P, {}, {"ann": ann.incarnation}, codes=[bob.code])
    (page,) = store.list_pairs(P, "bob").pairs
    halt = Halt(store, "UPDATE change_sequence")  # by then the generation is locked
    with ThreadPoolExecutor(2) as pool:
        user = pool.submit(store.delete_user, P, "ann")
        halt.reach()
        deleted = pool.submit(second.delete_pair, P, "bob", page.pair_id)
        until_waiting(store, deleted)
        halt.go_on()
        assert user.result(PATIENCE) and deleted.result(PATIENCE)


def test_who_begins_to_draw_waits_in_no_ring(store: Store, second: Store) -> None:
    ann, bob = sorted((share(store, name) for name in ("ann", "bob")), key=lambda c: c.code)
    store.create_generation(P, {}, {ann.user_id: ann.incarnation}, codes=[bob.code])
    halt = Halt(store, "SELECT taste_codes.code")
    with ThreadPoolExecutor(3) as pool:
        user = pool.submit(store.delete_user, P, ann.user_id)
        halt.reach()
        withdrawn = pool.submit(second.delete_taste_code, P, bob.user_id, bob.code)
        until_waiting(store, withdrawn)
        drawing = pool.submit(draw, second, ann, bob)  # ann's code is the first that it locks
        until_waiting(store, withdrawn, drawing)
        halt.go_on()
        assert user.result(PATIENCE)
        withdrawn.result(PATIENCE)
        assert isinstance(drawing.exception(PATIENCE), NotFound)


def test_nothing_says_whose_taste_it_was_once_it_has_ended(store: Store) -> None:
    code = share(store)
    ended = [draw(store, code) for _ in range(3)]
    for generation, state in zip(ended, ("done", "failed", "cancelled"), strict=True):
        store.set_generation(P, generation.generation_id, "running")
        store.set_generation(P, generation.generation_id, state)
    going_on = draw(store, code)
    with store._database.read() as session:
        found = session.scalars(select(GenerationCodeRecord.generation_id)).all()
    assert found == [going_on.generation_id]
