"""Verdicts out of the store that a server writes, while it is open."""

from __future__ import annotations

from pathlib import Path

from ppd_serve.storage.store import DEFAULT_PROJECT, NewImage, Store
from tests.storage.places import Place
from training.data.choices import Skipped
from training.data.live_feedback import Verdict, live_feedback
from training.data.readings import split_of

P = DEFAULT_PROJECT


def judge(store: Store, user_id: str, number: int, liked: bool, project: str = P) -> str:
    """Feedback on a picture that was drawn for nobody; its id."""
    drawn = store.create_generation(project, {"prompt": f"a cat, {number}"})
    picture = NewImage(f"picture {number}".encode(), "image/png", 8, 8)
    image = store.add_image(project, picture, "generated", drawn.generation_id)
    return store.put_feedback(project, user_id, image.image_id, liked).feedback_id


def read(at: Place, project: str = P) -> list[Verdict]:
    skipped = Skipped()
    found = list(live_feedback(at.database_url, at.blob_url, skipped, project=project))
    assert skipped.kept == len(found) and not skipped.reasons
    return found


def test_every_verdict_comes_person_by_person(store: Store, place: Place) -> None:
    for number, user in enumerate(["bob", "ann", "bob"]):
        judge(store, user, number, liked=number > 0)
        place.clock.pass_hours(1)
    judge(store, "ann", 3, liked=True, project="other")
    told = [(v.user, v.prompt, v.picture, v.liked) for v in read(place)]
    assert told == [
        ("default/ann", "a cat, 1", b"picture 1", True),
        ("default/bob", "a cat, 0", b"picture 0", False),
        ("default/bob", "a cat, 2", b"picture 2", True),
    ]
    assert [v.user for v in read(place, "other")] == ["other/ann"]
    user = "default/ann"
    some = live_feedback(place.database_url, place.blob_url, Skipped(), users=split_of(user))
    assert user in {v.user for v in some}


def test_what_is_taken_back_stops_coming(store: Store, place: Place) -> None:
    judge(store, "ann", 0, liked=True)
    ids = []
    for number in range(4):
        ids.append(judge(store, "bob", number, liked=True))
        place.clock.pass_hours(1)
    stream = live_feedback(place.database_url, place.blob_url, Skipped())
    seen = [next(stream), next(stream)]
    store.delete_feedback(P, "bob", ids[1])
    seen += [next(stream)]
    store.delete_user(P, "bob")
    seen += list(stream)
    assert [v.prompt for v in seen] == ["a cat, 0", "a cat, 0", "a cat, 2"]
    assert [v.user for v in read(place)] == ["default/ann"]


def test_missing_and_torn_pictures_are_counted(store: Store, place: Place) -> None:
    for number in range(3):
        judge(store, "ann", number, liked=True)
    by_bytes = {p.read_bytes(): p for p in Path(place.blob_url).rglob("*") if p.is_file()}
    by_bytes[b"picture 0"].unlink()
    by_bytes[b"picture 1"].write_bytes(b"pic")
    skipped = Skipped()
    (left,) = live_feedback(place.database_url, place.blob_url, skipped)
    assert left.prompt == "a cat, 2"
    assert skipped.reasons == {"no picture": 1, "broken picture": 1}
