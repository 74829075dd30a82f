from __future__ import annotations

import pytest

from ppd_serve.errors import Conflict, Gone, NotFound
from ppd_serve.storage.store import Choice, NewPair, Question, Store
from tests.storage.places import Place, pair, picture

P = "default"


def ask(store: Store, user_id: str = "ann", name: str = "q") -> Question:
    user, _ = store.put_user(P, user_id)
    sides = picture(f"{name} left"), picture(f"{name} right")
    return store.add_question(
        P, user_id, user.incarnation, user.version, f"prompt {name}", *sides, 0.25
    )


@pytest.mark.parametrize("choice", ["left", "right"])
def test_an_answer_is_an_ordinary_pair(store: Store, place: Place, choice: Choice) -> None:
    question = ask(store)
    assert store.get_question(P, "ann", question.question_id) == question
    added = store.answer_question(P, "ann", question.question_id, choice)
    assert (added.version, added.pairs_total, added.replayed) == (1, 1, False)
    (stored,) = store.list_pairs(P, "ann").pairs
    sides = [question.left_image_id, question.right_image_id]
    if choice == "right":
        sides.reverse()
    assert [stored.pair_id] == added.pair_ids and stored.prompt == "prompt q"
    assert [stored.preferred_image_id, stored.rejected_image_id] == sides
    assert store.load_pairs(P, "ann").pairs[0].preferred == f"q {choice}".encode()
    place.clock.pass_hours(24 * 8)  # the pair keeps the pictures
    assert store.sweep().images == 0


def test_a_second_answer_is_the_same_or_none(store: Store) -> None:
    question = ask(store).question_id
    first = store.answer_question(P, "ann", question, "left")
    store.add_pairs(P, "ann", [pair()])
    again = store.answer_question(P, "ann", question, "left")
    assert again.replayed and again.pair_ids == first.pair_ids and again.pairs_total == 2
    for other in ("right", "neither"):
        with pytest.raises(Conflict):
            store.answer_question(P, "ann", question, other)
    assert store.get_question(P, "ann", question).choice == "left"
    assert store.get_user(P, "ann").pairs_total == 2


def test_neither_makes_no_pair(store: Store, place: Place) -> None:
    question = ask(store).question_id
    for replayed in (False, True):
        added = store.answer_question(P, "ann", question, "neither")
        assert (added.version, added.pair_ids, added.replayed) == (0, [], replayed)
    with pytest.raises(Conflict):
        store.answer_question(P, "ann", question, "left")
    place.clock.pass_hours(24 * 8)
    assert store.sweep().images == 2
    assert store.answer_question(P, "ann", question, "neither").replayed


def test_who_has_not_been_asked_cannot_answer(store: Store) -> None:
    question = ask(store).question_id
    store.put_user(P, "bob")
    for project, user_id, name in [
        ("other", "ann", question),
        (P, "bob", question),
        (P, "nobody", question),
        (P, "ann", "question_0"),
    ]:
        with pytest.raises(NotFound) as error:
            store.answer_question(project, user_id, name, "left")
        assert error.value.field == "question_id"


@pytest.mark.parametrize("swept", [False, True])
def test_expired_pictures_cannot_be_chosen(store: Store, place: Place, swept: bool) -> None:
    question = ask(store).question_id
    place.clock.pass_hours(24 * 7)
    if swept:
        store.sweep()
    with pytest.raises(Gone):
        store.answer_question(P, "ann", question, "left")
    assert store.get_question(P, "ann", question).choice is None
    assert store.get_user(P, "ann").pairs_total == 0


def test_two_equal_pictures_are_two(store: Store) -> None:
    user, _ = store.put_user(P, "ann")
    same = picture("same")
    question = store.add_question(P, "ann", user.incarnation, 0, "p", same, same, 0.0)
    assert question.left_image_id != question.right_image_id


def test_a_question_goes_with_its_pair(store: Store) -> None:
    question = ask(store).question_id
    (pair_id,) = store.answer_question(P, "ann", question, "left").pair_ids
    assert store.questions_total(P, "ann") == 1
    store.delete_pair(P, "ann", pair_id)
    with pytest.raises(NotFound):
        store.get_question(P, "ann", question)
    assert store.questions_total(P, "ann") == 0


def test_the_pictures_of_a_question_go_with_its_pair(store: Store, place: Place) -> None:
    question = ask(store)
    (pair_id,) = store.answer_question(P, "ann", question.question_id, "left").pair_ids
    store.delete_pair(P, "ann", pair_id)  # nothing says any more whose they were
    for image_id in (question.left_image_id, question.right_image_id):
        with pytest.raises(NotFound):
            store.get_image(P, image_id)
    assert place.blobs() == set()


def test_the_pictures_of_a_question_stay_for_what_else_uses_them(
    store: Store, place: Place
) -> None:
    question = ask(store)
    left, right = question.left_image_id, question.right_image_id
    (pair_id,) = store.answer_question(P, "ann", question.question_id, "left").pair_ids
    liked = store.put_feedback(P, "ann", left, liked=True)
    store.add_pairs(P, "bob", [NewPair("p", right, picture("x"))])
    store.delete_pair(P, "ann", pair_id)
    assert store.get_image(P, left) and store.get_image(P, right)
    store.delete_feedback(P, "ann", liked.feedback_id)
    with pytest.raises(NotFound):
        store.get_image(P, left)
    store.delete_user(P, "ann")
    assert store.get_image(P, right)
    store.delete_user(P, "bob")
    assert place.blobs() == set()


def test_a_pair_of_some_uploads_leaves_them_their_time(store: Store) -> None:
    ids = [store.add_image(P, picture(name)).image_id for name in "ab"]
    (pair_id,) = store.add_pairs(P, "ann", [NewPair("p", *ids)]).pair_ids
    store.delete_pair(P, "ann", pair_id)
    assert [store.get_image(P, image_id).image_id for image_id in ids] == ids


def test_questions_since_the_last_pair(store: Store, place: Place) -> None:
    def asked() -> Question:
        place.clock.pass_hours(0.1)
        return ask(store)

    ask(store, "bob")
    assert store.questions_since_pair(P, "ann") == 0
    store.answer_question(P, "ann", asked().question_id, "neither")
    asked()
    assert store.questions_since_pair(P, "ann") == 2
    question = asked()
    place.clock.pass_hours(0.1)
    store.answer_question(P, "ann", question.question_id, "left")
    assert store.questions_since_pair(P, "ann") == 0
    asked()
    assert store.questions_since_pair(P, "ann") == 1
    assert store.questions_since_pair(P, "bob") == 1


def test_questions_go_with_their_user(store: Store, place: Place) -> None:
    open_question, answered = ask(store, name="open"), ask(store, name="answered")
    store.answer_question(P, "ann", answered.question_id, "right")
    others = ask(store, "bob")
    store.delete_user(P, "ann")
    for question in (open_question, answered):
        with pytest.raises(NotFound):
            store.get_question(P, "ann", question.question_id)
        with pytest.raises(NotFound):
            store.get_image(P, question.left_image_id)
    assert len(place.blobs()) == 2
    assert store.get_question(P, "bob", others.question_id) == others


def test_a_question_that_was_late_is_nobodys(store: Store) -> None:
    user, _ = store.put_user(P, "ann")
    store.delete_user(P, "ann")
    sides = picture("left"), picture("right")
    for _ in range(2):
        with pytest.raises(NotFound):
            store.add_question(P, "ann", user.incarnation, 0, "p", *sides, 0.5)
        store.put_user(P, "ann")  # somebody else took the name


def test_a_question_made_of_a_pair_that_was_deleted_meanwhile_is_not_kept(store: Store) -> None:
    pair_ids = store.add_pairs(P, "ann", [pair("a"), pair("b")]).pair_ids
    loaded = store.load_pairs(P, "ann")
    store.delete_pair(P, "ann", pair_ids[0])
    sides = picture("left"), picture("right")
    made = (P, "ann", loaded.incarnation)
    with pytest.raises(Conflict):
        store.add_question(*made, loaded.version, "p", *sides, 0.5)
    assert store.questions_total(P, "ann") == 0
    now = store.load_pairs(P, "ann").version
    store.add_pairs(P, "ann", [pair("c")])  # which takes nothing away
    assert store.add_question(*made, now, "p", *sides, 0.5)
    assert store.questions_total(P, "ann") == 1
