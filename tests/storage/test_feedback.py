from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ppd_serve.errors import Conflict, InvalidInput, NotFound
from ppd_serve.storage.store import Image, NewPair, Store
from tests.storage.places import PATIENCE, Halt, Place, picture, until_waiting

P = "default"


def drawn(store: Store, *users: str, prompt: str = "a boat") -> Image:
    living = {name: store.put_user(P, name)[0].incarnation for name in users}
    generation = store.create_generation(P, {"prompt": prompt}, living)
    return store.add_image(P, picture(prompt), "generated", generation.generation_id)


def test_a_change_of_mind_takes_the_place_of_the_first(store: Store) -> None:
    image = drawn(store, "ann").image_id
    first = store.put_feedback(P, "ann", image, liked=True)
    second = store.put_feedback(P, "ann", image, liked=False)
    assert (first.liked, second.liked, second.image_id) == (True, False, image)
    assert second.feedback_id == first.feedback_id
    assert store.get_user(P, "ann").version == 0  # the taste is read from pairs alone


def test_a_picture_stays_while_somebody_has_judged_it(store: Store, place: Place) -> None:
    image = drawn(store).image_id
    mine = store.put_feedback(P, "ann", image, liked=True)
    others = store.put_feedback(P, "bob", image, liked=False)
    assert mine.feedback_id != others.feedback_id
    place.clock.pass_hours(24 * 8)
    assert store.sweep().images == 0
    with pytest.raises(Conflict):
        store.delete_image(P, image)
    store.put_feedback(P, "ann", image, liked=False)  # though its time is over
    store.delete_feedback(P, "ann", mine.feedback_id)
    assert store.read_image(P, image)
    store.delete_feedback(P, "ann", others.feedback_id)  # not hers
    assert store.read_image(P, image)
    for _ in range(2):
        store.delete_feedback(P, "bob", others.feedback_id)
    with pytest.raises(NotFound):
        store.get_image(P, image)
    assert place.blobs() == set()


def test_a_mind_can_change_while_it_is_taken_back(store: Store, second: Store) -> None:
    image = drawn(store, "ann").image_id
    first = store.put_feedback(P, "ann", image, liked=True).feedback_id
    halt = Halt(store, "UPDATE feedback")
    with ThreadPoolExecutor(2) as pool:
        changing = pool.submit(store.put_feedback, P, "ann", image, liked=False)
        halt.reach()
        taking_back = pool.submit(second.delete_feedback, P, "ann", first)
        until_waiting(store, taking_back)
        halt.go_on()
        assert changing.result(PATIENCE).feedback_id == first
        taking_back.result(PATIENCE)
    assert store.put_feedback(P, "ann", image, liked=True).feedback_id != first


def test_nobody_has_nothing_to_take_back(store: Store) -> None:
    store.delete_feedback(P, "nobody", "feedback_0")
    with pytest.raises(NotFound):
        store.get_user(P, "nobody")


def test_taking_it_back_leaves_a_fresh_picture_its_time(store: Store) -> None:
    image = drawn(store, "ann").image_id
    store.delete_feedback(P, "ann", store.put_feedback(P, "ann", image, True).feedback_id)
    assert store.read_image(P, image)


def test_only_what_was_drawn_for_the_user_is_judged(store: Store, place: Place) -> None:
    hers, blend, nobodys = drawn(store, "ann"), drawn(store, "ann", "bob"), drawn(store)
    for image in (blend, nobodys):
        store.put_feedback(P, "bob", image.image_id, liked=True)
    uploaded = store.add_image(P, picture("up"))
    store.add_pairs(P, "bob", [NewPair("p", uploaded.image_id, picture("x"))])
    for image in (hers, uploaded):
        with pytest.raises(InvalidInput) as error:
            store.put_feedback(P, "bob", image.image_id, liked=True)
        assert error.value.field == "image_id"
    expired = drawn(store, "bob")
    place.clock.pass_hours(24 * 7)
    for project, image_id in [("other", blend.image_id), (P, "img_0"), (P, expired.image_id)]:
        with pytest.raises(NotFound):
            store.put_feedback(project, "new", image_id, liked=True)
        with pytest.raises(NotFound):
            store.get_user(project, "new")  # nothing was written


def test_both_pictures_of_a_question_can_be_judged(store: Store) -> None:
    user, _ = store.put_user(P, "ann")
    sides = picture("left"), picture("right")
    question = store.add_question(P, "ann", user.incarnation, 0, "a fish", *sides, 0.5)
    for image_id in (question.left_image_id, question.right_image_id):
        store.put_feedback(P, "ann", image_id, liked=False)
        with pytest.raises(InvalidInput):
            store.put_feedback(P, "bob", image_id, liked=True)


def test_feedback_goes_with_its_user(store: Store, place: Place) -> None:
    shared, hers = drawn(store, prompt="shared"), drawn(store, "ann", prompt="hers")
    for name in ("ann", "bob"):
        store.put_feedback(P, name, shared.image_id, liked=True)
    store.put_feedback(P, "ann", hers.image_id, liked=True)
    place.clock.pass_hours(24 * 8)
    store.delete_user(P, "ann")
    with pytest.raises(NotFound):
        store.get_image(P, hers.image_id)
    assert store.read_image(P, shared.image_id)
    store.delete_user(P, "bob")
    assert place.blobs() == set()
