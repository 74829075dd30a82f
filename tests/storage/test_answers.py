from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ppd_serve.errors import Conflict, InvalidInput, NotFound
from ppd_serve.storage.store import Idempotency, NewPair, Store
from tests.storage.places import Place, pair, picture

P = "default"
KEY = Idempotency("POST /generate", "key", "hash")
OTHER_BODY = Idempotency("POST /generate", "key", "other hash")


def test_a_key_runs_once_and_answers_for_a_day(store: Store, place: Place) -> None:
    assert store.begin_idempotent(P, KEY) is None
    with pytest.raises(Conflict):
        store.begin_idempotent(P, KEY)
    with pytest.raises(InvalidInput):
        store.begin_idempotent(P, OTHER_BODY)
    assert store.finish_idempotent(P, KEY, {"status": 200, "body": {"n": 1}})
    assert store.begin_idempotent(P, KEY) == {"status": 200, "body": {"n": 1}}
    with pytest.raises(InvalidInput):
        store.begin_idempotent(P, OTHER_BODY)
    assert store.begin_idempotent("other project", KEY) is None
    assert store.begin_idempotent(P, Idempotency("POST /images", "key", "hash")) is None

    place.clock.pass_hours(23.9)
    assert store.begin_idempotent(P, KEY) is not None
    place.clock.pass_hours(0.2)
    assert store.begin_idempotent(P, OTHER_BODY) is None  # a new day, a new key
    store.finish_idempotent(P, OTHER_BODY, {})
    place.clock.pass_hours(24)
    assert store.sweep().answers == 1


def test_a_released_key_runs_again(store: Store) -> None:
    store.begin_idempotent(P, KEY)
    store.release_idempotent(P, KEY)
    assert store.begin_idempotent(P, OTHER_BODY) is None


def test_an_answer_about_a_deleted_user_is_neither_kept_nor_stored(store: Store) -> None:
    store.put_user(P, "ann")
    store.begin_idempotent(P, KEY, ["ann", "bob"])
    store.delete_user(P, "ann")
    assert store.finish_idempotent(P, KEY, {"late": True}) is False
    assert store.begin_idempotent(P, KEY) is None


@pytest.mark.parametrize("what", ["taste code", "question", "feedback"])
def test_an_answer_goes_with_what_it_names(store: Store, what: str) -> None:
    added = store.add_pairs(P, "ann", [pair()])
    (pair_id,) = added.pair_ids
    if what == "taste code":
        numbers = np.ones((1, 2), np.float32)
        store.put_embedding(P, "ann", added.incarnation, 1, "s", numbers, 1, None)
        name = store.add_taste_code(P, "ann", added.incarnation, 1).code
    elif what == "question":
        sides = picture("left"), picture("right")
        question = store.add_question(P, "ann", added.incarnation, 1, "p", *sides, 0.5)
        name = question.question_id
        (pair_id,) = store.answer_question(P, "ann", name, "left").pair_ids
    else:
        generation = store.create_generation(P, {"prompt": "p"})
        image = store.add_image(P, picture("x"), "generated", generation.generation_id)
        name = store.put_feedback(P, "ann", image.image_id, liked=True).feedback_id
    told, other = (Idempotency("POST /users/ann/things", k, "hash") for k in "ab")
    bobs = Idempotency("POST /users/bob/things", "a", "hash")
    for key, user_id, answer in [
        (told, "ann", {"name": name}),
        (other, "ann", {"name": "another"}),
        (bobs, "bob", {"name": name}),
    ]:
        store.begin_idempotent(P, key, [user_id])
        store.finish_idempotent(P, key, answer)
    if what == "taste code":
        store.delete_taste_code(P, "ann", name)
    elif what == "question":
        store.delete_pair(P, "ann", pair_id)
    else:
        store.delete_feedback(P, "ann", name)
    assert store.begin_idempotent(P, told, ["ann"]) is None
    assert store.begin_idempotent(P, other, ["ann"]) == {"name": "another"}
    assert store.begin_idempotent(P, bobs, ["bob"]) == {"name": name}


def test_pairs_with_a_key_are_added_once_with_one_answer(store: Store, place: Place) -> None:
    added = store.add_pairs(P, "ann", [pair()], KEY)
    assert not added.replayed
    with pytest.raises(Conflict):
        store.add_pairs(P, "ann", [pair()], KEY)
    with pytest.raises(InvalidInput):
        store.add_pairs(P, "ann", [pair()], OTHER_BODY)
    store.finish_idempotent(P, KEY, {"profile": "warm"})
    store.add_pairs(P, "ann", [pair("more")])
    again = store.add_pairs(P, "ann", [pair()], KEY)
    assert again.replayed and again.answer == {"profile": "warm"}
    assert again.pair_ids == added.pair_ids and again.pairs_total == 1
    assert store.get_user(P, "ann").pairs_total == 2
    place.clock.pass_hours(25)
    assert not store.add_pairs(P, "ann", [pair()], KEY).replayed


def test_a_refused_call_leaves_its_key_free(store: Store) -> None:
    with pytest.raises(NotFound):
        store.add_pairs(P, "ann", [NewPair("p", "img_unknown", "img_unknown")], KEY)
    assert not store.add_pairs(P, "ann", [pair()], OTHER_BODY).replayed


def test_pairs_whose_call_was_given_up_are_not_added_again(store: Store) -> None:
    added = store.add_pairs(P, "ann", [pair()], KEY)
    store.release_idempotent(P, KEY)
    again = store.add_pairs(P, "ann", [pair()], KEY)
    assert again.replayed and again.answer is None and again.pair_ids == added.pair_ids
    assert store.finish_idempotent(P, KEY, {"ok": True})
    assert store.add_pairs(P, "ann", [pair()], KEY).answer == {"ok": True}


def test_of_many_at_once_with_one_key_one_does_it(store: Store) -> None:
    def add(_: int) -> bool:
        try:
            return not store.add_pairs(P, "ann", [pair()], KEY).replayed
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(16))) == 1
    assert store.get_user(P, "ann").pairs_total == 1
