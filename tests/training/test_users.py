"""The studio's people: what they like, how surely they say so, and that nobody is in two splits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.data.users import SPLIT_SEEDS, Tastes, people, sample_tastes
from training.data.world import AXES


def taste(weight: float = 0.0, curvature: float = 0.0, level: float = 0.0, axis: int = 1) -> Tastes:
    values = np.zeros((3, 1, len(AXES)), np.float32)
    values[:, 0, axis] = weight, curvature, level
    return Tastes(*values)


def at(axis: int, value: float) -> np.ndarray:
    scores = np.zeros((1, len(AXES)), np.float32)
    scores[0, axis] = value
    return scores


def identities(tastes: Tastes) -> set[bytes]:
    return {w.tobytes() + t.tobytes() for w, t in zip(tastes.weight, tastes.level, strict=True)}


@pytest.fixture(scope="module")
def everyone() -> Tastes:
    return people("train", 1500)


def test_reward_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    tastes = sample_tastes(5, rng)
    scores = rng.normal(size=(5, 3, 2, len(AXES))).astype(np.float32)
    found = tastes.reward(scores)
    assert found.shape == (5, 3, 2)
    for i, j, k in itertools.product(range(5), range(3), range(2)):
        z = scores[i, j, k]
        expected = tastes.weight[i] @ z - tastes.curvature[i] @ (z - tastes.level[i]) ** 2
        assert found[i, j, k] == pytest.approx(expected, abs=1e-5)
    assert tastes.reward(scores[:, 0, 0]).shape == (5,)


def test_a_particular_person_wants_neither_more_nor_less() -> None:
    person = taste(curvature=0.5, level=0.3)
    best = person.reward(at(1, 0.3))
    for other in (-1.0, 0.0, 0.6, 2.0):
        assert person.reward(at(1, other)) < best
    assert person.reward(at(1, 0.1)) == pytest.approx(person.reward(at(1, 0.5)))


def test_three_kinds_of_people(everyone: Tastes) -> None:
    active = (everyone.weight != 0).sum(1)
    particular = (everyone.curvature > 0).any(1)
    dense = active == len(AXES)
    assert 0.15 < particular.mean() < 0.25
    assert 0.15 < dense.mean() < 0.25
    sparse = ~particular & ~dense
    assert set(active[sparse]) == {2, 3}
    assert ((everyone.curvature[particular] > 0).sum(1) == 1).all()
    np.testing.assert_allclose(np.linalg.norm(everyone.weight[~particular], axis=1), 1, atol=1e-5)


def test_people_differ_and_lean_a_little(everyone: Tastes) -> None:
    liked = (everyone.weight > 0).sum(0) / (everyone.weight != 0).sum(0)
    assert (liked > 0.3).all() and (liked < 0.75).all()
    assert len(identities(everyone)) == len(everyone)


def test_choices_agree_with_the_taste_as_often_as_the_noise_says(everyone: Tastes) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, len(everyone), 40, len(AXES))).astype(np.float32)
    first = everyone.prefers_first(a, b, rng)
    agrees = first == (everyone.reward(a) > everyone.reward(b))
    assert 0.85 < agrees.mean() < 0.91
    again = everyone.prefers_first(a, b, np.random.default_rng(2))
    assert (again != first).mean() > 0.05  # the noise is noise, not a rule


def test_a_clear_choice_is_hardly_ever_missed_and_a_tie_is_a_coin() -> None:
    person = taste(weight=1.0)
    near, far = (
        np.zeros((1, 2000, len(AXES)), np.float32),
        np.zeros((1, 2000, len(AXES)), np.float32),
    )
    far[..., 1] = 2
    rng = np.random.default_rng(3)
    assert person.prefers_first(far, near, rng).mean() > 0.995
    assert 0.45 < person.prefers_first(near, near, rng).mean() < 0.55


def test_nobody_is_in_two_splits() -> None:
    groups = [identities(people(split, 300)) for split in SPLIT_SEEDS]
    assert all(not a & b for a, b in itertools.combinations(groups, 2))


def test_more_people_of_a_split_begin_with_the_same_people() -> None:
    few, many = people("dev", 20), people("dev", 50)
    np.testing.assert_array_equal(few.weight, many[:20].weight)
    np.testing.assert_array_equal(few.level, many[:20].level)
