"""Who was read once still has an embedding for each of the choices that this reading saw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ppd_serve.release import Release
from tests.tiny_release import make_tiny_release
from tests.training.planted import planted_backbone, planted_choices
from tests.training.shards import picture, row
from training.data.choice_set import ChoiceSet
from training.data.choices import Choice, choice_of
from training.data.prepare import prepare

FOUR, SIX, EIGHT = range(3)
# Mixed as they come; everybody's pairs by their place.
USERS = [*[FOUR, SIX, EIGHT] * 4, SIX, EIGHT, SIX, EIGHT, EIGHT, EIGHT]
CHOICES = [choice_of(row(n, user=user)) for n, user in enumerate(USERS)]
PLACES = [[k for k, who in enumerate(USERS) if who == user] for user in (FOUR, SIX, EIGHT)]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_tiny_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def prepared(release: Release, tmp_path_factory: pytest.TempPathFactory) -> ChoiceSet:
    out = tmp_path_factory.mktemp("prepared")
    found = prepare(CHOICES, release, out)
    assert not list(out.glob("*.parquet"))
    return found


def embedding(choices: ChoiceSet, pair: int, user: int | None = None) -> np.ndarray:
    if pair >= 0:
        found = choices.readings_for_pair(pair)
    else:  # a picture that they never saw
        assert user is not None
        found = choices.readings_for_picture(user, -1)
    return choices.embedding(found, np.random.default_rng(0), pooled=4)


@pytest.mark.slow
def test_fours_are_read_in_order_and_what_is_left_is_not(prepared: ChoiceSet) -> None:
    of_user = [prepared.read_in[places] for places in PLACES]
    assert len(set(of_user[FOUR])) == 1 and -1 not in of_user[FOUR]
    assert len(set(of_user[SIX][:4])) == 1 and (of_user[SIX][4:] == -1).all()
    first, second = of_user[EIGHT][:4], of_user[EIGHT][4:]
    assert len(set(first)) == len(set(second)) == 1 and first[0] != second[0]
    assert len(set(prepared.read_in) - {-1}) == 4


@pytest.mark.slow
def test_a_choice_of_the_only_four_is_read_from_the_others(
    prepared: ChoiceSet, release: Release
) -> None:
    """Of three where there are four in all, of four where there are more; never of itself."""
    encoder = release.load_encoder()

    def read(places: list[int]) -> np.ndarray:
        return encoder.embed([CHOICES[place].pair for place in places]).embedding

    for user, more in ((FOUR, []), (SIX, [PLACES[SIX][4]])):
        only = PLACES[user][:4]
        for pair in only:
            others = [place for place in only if place != pair] + more
            np.testing.assert_allclose(embedding(prepared, pair), read(others), atol=1e-4)
        assert np.abs(embedding(prepared, only[0]) - read(only)).max() > 1e-3
        # For all that they did not see it is the four that speak.
        unseen = PLACES[user][4:] if user == SIX else [-1]
        for pair in unseen:
            np.testing.assert_allclose(embedding(prepared, pair, user), read(only), atol=1e-4)
    for pair in PLACES[EIGHT]:
        other = PLACES[EIGHT][4:] if pair in PLACES[EIGHT][:4] else PLACES[EIGHT][:4]
        np.testing.assert_allclose(embedding(prepared, pair), read(other), atol=1e-4)
    assert prepared.about["readings"] == 4 + 2 * 4


@pytest.mark.slow
def test_no_pair_is_without_an_embedding(prepared: ChoiceSet) -> None:
    """PPD would get no gradient of it, and the held-out measure would be diluted."""
    assert all(embedding(prepared, pair).any() for pair in range(len(prepared)))


def winners_stay(pairs: int) -> list[Choice]:
    """As Pick-a-Pic's people were asked: the winner of a pair stands in the next one."""
    said = [
        row(n, user=0, jpg_0=picture(n), jpg_1=picture(n + 1), image_0_uid=f"image-{n}",
            image_1_uid=f"image-{n + 1}", label_0=0.0, label_1=1.0)
        for n in range(pairs)
    ]  # fmt: skip
    return [choice_of(one) for one in said]


@pytest.mark.slow
def test_no_pair_is_read_in_another_that_shows_its_picture(
    release: Release, tmp_path: Path
) -> None:
    asked = winners_stay(8)
    found = prepare(asked, release, tmp_path)
    encoder = release.load_encoder()

    def read(*pairs: int) -> np.ndarray:
        return encoder.embed([asked[pair].pair for pair in pairs]).embedding

    for pair in (0, 1, 2):
        np.testing.assert_allclose(embedding(found, pair), read(4, 5, 6, 7), atol=1e-4)
    for pair in (5, 6, 7):
        np.testing.assert_allclose(embedding(found, pair), read(0, 1, 2, 3), atol=1e-4)
    # These two share a picture and stand in two fours.
    np.testing.assert_allclose(embedding(found, 3), read(0, 1, 5, 6), atol=1e-4)
    np.testing.assert_allclose(embedding(found, 4), read(0, 1, 2, 6), atol=1e-4)
    assert found.about["readings"] == 2 + 2


@pytest.mark.slow
def test_a_pair_whose_pictures_are_in_all_others_has_no_reading(
    release: Release, tmp_path: Path
) -> None:
    again = [choice_of(row(0, user=0))] * 5
    found = prepare(again, release, tmp_path)
    assert [len(found.readings_for_pair(pair)) for pair in range(5)] == [0] * 5


@pytest.mark.slow
def test_what_is_read_is_limited_and_what_is_learnt_is_not(
    release: Release, tmp_path: Path
) -> None:
    """The ninth shows what the eighth, the last that is read, showed."""
    asked = winners_stay(11)
    found = prepare(asked, release, tmp_path, most_read=8)
    assert len(found) == 11 and (found.read_in[8:] == -1).all()
    told = release.load_encoder()
    first = told.embed([c.pair for c in asked[:4]]).embedding
    np.testing.assert_allclose(embedding(found, 8), first, atol=1e-4)
    assert len(found.readings_for_pair(10)) == 2


def test_a_reading_for_one_pair_is_used_for_no_other() -> None:
    choices = planted_choices(planted_backbone())
    user = int(choices.user[0])
    own = np.flatnonzero(choices.reading_user == user)
    whose = choices.reading_user.copy()
    whose[own[1:]] = -1
    read_in, read_for = np.full((2, len(choices)), -1)
    read_in[0], read_for[0] = own[0], own[1]
    choices = dataclasses.replace(choices, reading_user=whose, read_in=read_in, read_for=read_for)
    np.testing.assert_array_equal(embedding(choices, 0), choices.readings[own[1]])
    others = np.flatnonzero(choices.user == user)[1:]
    for pair in (-1, *others):
        np.testing.assert_array_equal(embedding(choices, pair, user), choices.readings[own[0]])
