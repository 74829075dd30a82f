"""KTO learns from what people said of single pictures, straight from a server's database."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ppd_serve.release import Release, load_release
from ppd_serve.storage.store import DEFAULT_PROJECT, NewImage, NewPair, Store
from tests.storage.places import Place
from tests.tiny_release import make_tiny_release
from tests.training.shards import picture
from tests.training.test_commands import called
from training.data.choice_set import ChoiceSet
from training.data.choices import Skipped
from training.data.likes import Likes, liked_pictures
from training.data.live import live_choices
from training.data.live_feedback import live_feedback
from training.data.prepare import prepare
from training.data.readings import split_of
from training.policy import Policy
from training.recipes import Recipe
from training.train import PreferenceTraining

P = DEFAULT_PROJECT
WON, LOST, DRAWN = range(3)  # pictures, by the order in which they are met


def image(seed: int) -> NewImage:
    return NewImage(picture(seed), "image/jpeg", 16, 16)


def people(split: str, count: int, project: str) -> list[str]:
    names = (f"user-{number}" for number in range(1000))
    return [name for name in names if split_of(f"{project}/{name}") == split][:count]


def live_with(at: Place, store: Store, user_id: str, seed: int, project: str = P) -> None:
    """Prefers one picture over another, then dislikes it; likes one that was drawn alone."""
    drawn = [store.create_generation(project, {"prompt": prompt}) for prompt in ("a fox", "a sea")]
    won, alone = (
        store.add_image(project, image(seed + n), "generated", one.generation_id).image_id
        for n, one in enumerate(drawn)
    )
    store.add_pairs(project, user_id, [NewPair("a fox", won, image(seed + 2))])
    store.put_feedback(project, user_id, won, liked=False)
    at.clock.pass_hours(0.1)
    store.put_feedback(project, user_id, alone, liked=True)


@pytest.fixture
def at(tmp_path: Path) -> Place:
    return Place(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs"))


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_tiny_release(tmp_path / "release")


def prepared(at: Place, release: Release, out: Path) -> ChoiceSet:
    places, told = (at.database_url, at.blob_url), (Skipped(), Skipped())
    return prepare(
        live_choices(*places, told[0]), release, out, verdicts=live_feedback(*places, told[1])
    )


def likes(choices: ChoiceSet) -> Likes:
    return liked_pictures(
        choices.user, choices.prompt, choices.preferred, choices.rejected, choices.judged,
        by_user=True,
    )  # fmt: skip


def test_what_people_said_is_prepared_beside_their_pairs(
    at: Place, release: Release, tmp_path: Path
) -> None:
    store = at.open()
    live_with(at, store, "ann", 0)
    found = prepared(at, release, tmp_path / "out")
    store.close()
    assert len(found) == 1 and len(found.latents) == 3  # a picture is prepared once
    assert found.judged is not None and found.judged.tolist() == [[0, 0, WON, 0], [0, 1, DRAWN, 1]]
    assert len(found.text["states"]) == 3  # "a fox", "a sea", and none
    said = likes(found)
    assert said.picture.tolist() == [WON, LOST, DRAWN]
    assert said.liked.tolist() == [False, False, True]


def test_kto_draws_the_picture_with_its_prompt_and_its_judge(
    at: Place, release: Release, tmp_path: Path
) -> None:
    store = at.open()
    for number, name in enumerate(("ann", "bob")):
        live_with(at, store, name, 10 * number)
    choices = prepared(at, release, tmp_path / "out")
    store.close()
    shape = choices.embedding_shape
    choices = dataclasses.replace(
        choices,
        readings=np.stack([np.full(shape, number, np.float32) for number in (1, 2, 11, 12)]),
        reading_user=np.array([0, 1, 0, 1]),
        reading_pairs=np.full(4, 4),
        read_in=choices.user.copy(),  # each pair was seen by its own user's first reading
    )
    how = Recipe(
        objective="kto", conditioning="user", steps=1, batch=64, liked_share=0.5, seed=3
    )  # fmt: skip
    policy = Policy(
        release.load_backbone(), weights=how.weights, conditioning=how.conditioning,
        embedding_shape=shape,
    )  # fmt: skip
    run = PreferenceTraining(how, choices, policy)
    samples = run.samples(0, range(64))
    assert choices.judged is not None
    own_word = {tuple(row) for row in choices.judged[:, [2, 1, 3]].tolist()}
    seen = zip(samples.pictures[:, 0], samples.prompt, samples.liked, strict=True)
    drawn = {tuple(int(x) for x in one) for one in seen}
    assert own_word <= drawn
    told: dict[int, set[float]] = {}
    for shown, row in zip(samples.pictures[:, 0].tolist(), samples.embedding, strict=True):
        told.setdefault(shown, set()).add(float(row.flatten()[0]))
    in_pairs = {*choices.preferred.tolist(), *choices.rejected.tolist()}
    for user, _, shown, _ in choices.judged.tolist():
        unread = {user + 11.0}  # who judged it, by the reading that did not see it
        assert told[shown] == (unread if shown in in_pairs else {user + 1.0, *unread})


@pytest.mark.slow
def test_a_servers_likes_come_to_training_by_the_commands(
    at: Place, release: Release, tmp_path: Path
) -> None:
    store = at.open()
    for split in ("train", "dev"):
        for number, name in enumerate(people(split, 3, "my-app")):
            seed = 100 * number + len(split)
            live_with(at, store, name, seed, "my-app")
            more = [NewPair("a fox", image(seed + n), image(seed + n + 1)) for n in (10, 12, 14)]
            store.add_pairs("my-app", name, more)
    store.close()
    said = called(
        "prepare", "--database", at.database_url, "--blobs", at.blob_url, "--project", "my-app",
        "--release", release.path, "--out", tmp_path / "data",
    )  # fmt: skip
    assert said.count("6 likes and dislikes, 0 skipped") == 2
    called(
        "train", "--objective", "kto", "--conditioning", "user", "--data", tmp_path / "data",
        "--release", release.path, "--out", tmp_path / "out", "--steps", 2, "--batch", 4,
        "--recipe", "studio-ppd",
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert np.isfinite(report["held_out"]["improvement"]["mean"])
    # Of three people four pairs and one picture judged alone; no picture is in two pairs.
    assert (report["likes"], report["left_out"]) == (3 * (4 * 2 + 1), 0)
    assert load_release(tmp_path / "out" / "release").version == "1.0+kto-user"
