"""A user's records, page by page, as an export reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ppd_serve.storage.store import Store
from ppd_serve.storage.values import BEGINNING, Place
from tests.storage.places import Place as Where
from tests.storage.places import pair, picture

P = "default"


def questioned(store: Store, user_id: str, prompt: str, project: str = P) -> str:
    incarnation = store.put_user(project, user_id)[0].incarnation
    sides = picture(f"{prompt} left"), picture(f"{prompt} right")
    asked = store.add_question(project, user_id, incarnation, 0, prompt, *sides, 0.5)
    return asked.question_id


def drawn(store: Store, user_id: str, prompt: str, project: str = P, others: Any = ()) -> str:
    living = {
        name: store.put_user(project, name)[0].incarnation for name in sorted({user_id, *others})
    }
    generation = store.create_generation(project, {"prompt": prompt}, living).generation_id
    for position in (1, 0):
        image = picture(f"{prompt} {position}")
        store.add_image(project, image, "generated", generation, position)
    return generation


def judged(store: Store, user_id: str, prompt: str, project: str = P) -> str:
    (image_id, _) = store.get_generation(project, drawn(store, user_id, prompt, project)).image_ids
    return store.put_feedback(project, user_id, image_id, liked=True).feedback_id


KINDS = [
    (questioned, Store.list_questions, lambda one: one.question_id),
    (drawn, Store.list_generations, lambda one: one.generation_id),
    (judged, Store.list_feedback, lambda one: one.feedback_id),
]


@pytest.mark.parametrize(("make", "read", "id_of"), KINDS, ids=["questions", "drawn", "feedback"])
@pytest.mark.parametrize("at_once", [True, False])
def test_every_record_comes_once_oldest_first(
    store: Store,
    place: Where,
    make: Callable[..., str],
    read: Callable[[Store, str, str, Place, int], list[Any]],
    id_of: Callable[[Any], str],
    at_once: bool,
) -> None:
    made = []
    for number in range(5):
        made.append(make(store, "ann", f"ann {number}"))
        make(store, "bob", f"bob {number}")
        make(store, "ann", f"other {number}", "other")
        place.clock.pass_hours(0 if at_once else 1)
    found, after = [], BEGINNING
    while page := read(store, P, "ann", after, 2):
        assert len(page) <= 2
        found += page
        after = page[-1].place
    ids = [id_of(one) for one in found]
    assert ids == sorted(made) if at_once else ids == made  # of one moment, by id
    assert read(store, P, "nobody", BEGINNING, 2) == []


def test_generations_come_as_they_are_got(store: Store) -> None:
    blend, alone = drawn(store, "ann", "both", others=["bob"]), drawn(store, "ann", "alone")
    store.set_generation(P, alone, "done", answer={"timing": {"total": 1.0}})
    found = store.list_generations(P, "ann", BEGINNING, 10)
    assert {one.generation_id: one for one in found} == {
        generation_id: store.get_generation(P, generation_id) for generation_id in (blend, alone)
    }
    (bobs,) = store.list_generations(P, "bob", BEGINNING, 10)
    assert bobs.user_ids == ["ann", "bob"] and list(bobs.images) == [0, 1]


def test_feedback_says_of_what(store: Store) -> None:
    feedback_id = judged(store, "ann", "a boat")
    (feedback,) = store.list_feedback(P, "ann", BEGINNING, 10)
    assert (feedback.feedback_id, feedback.prompt, feedback.liked) == (feedback_id, "a boat", True)


def test_a_space_is_named_while_any_version_is_kept(store: Store) -> None:
    assert store.embedding_spaces(P, "ann") == []
    for space in ("b", "b", "a"):
        added = store.add_pairs(P, "ann", [pair()])
        store.put_embedding(
            P, "ann", added.incarnation, added.version, space, np.ones((1, 2)), 1, None
        )
    assert store.embedding_spaces(P, "ann") == ["a", "b"]
    second = store.list_pairs(P, "ann").pairs[1]
    store.delete_pair(P, "ann", second.pair_id)  # what had read it goes
    assert store.embedding_spaces(P, "ann") == ["b"]
    assert store.embedding_spaces("other", "ann") == []
