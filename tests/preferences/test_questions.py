"""The question that tells most: against brute force, and over whole simulated conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.choice_model import ChoiceModel
from ppd_serve.preferences.questions import Questioner

D, ROWS, DIM = 4, 2, 3


@pytest.fixture
def questioner() -> Questioner:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((D, D))
    model = ChoiceModel(np.eye(D), 0.3 * rng.standard_normal(D), spread @ spread.T)
    return Questioner(model, 0.4 * rng.standard_normal((ROWS, DIM, D)))


def test_it_asks_in_opposite_directions_at_the_usual_length(questioner: Questioner) -> None:
    question = questioner.next(np.zeros((0, D)))
    assert question.left.shape == (ROWS, DIM) and question.left.dtype == np.float32
    np.testing.assert_array_equal(question.right, -question.left)
    assert np.linalg.norm(question.left) == pytest.approx(np.sqrt(ROWS * DIM), rel=1e-5)


@pytest.mark.parametrize("answered", [0, 1, 3, 9])
def test_no_other_direction_tells_more(questioner: Questioner, answered: int) -> None:
    rng = np.random.default_rng(answered)
    made = rng.standard_normal((answered, D))
    found = questioner.next(made)
    others = rng.standard_normal((20_000, ROWS * DIM))
    others *= np.sqrt(ROWS * DIM) / np.linalg.norm(others, axis=1, keepdims=True)
    belief = questioner.choices.fit(made) if answered else questioner.choices.prior
    bits = belief.information(2 * others @ questioner.response.reshape(-1, D))
    assert found.bits >= 0.98 * bits.max()


def test_it_does_not_ask_what_it_knows(questioner: Questioner) -> None:
    """Many answers about one direction leave it for another, and promise less."""
    before = questioner.next(np.zeros((0, D)))
    shown = 2 * before.left.ravel() @ questioner.response.reshape(-1, D)
    after = questioner.next(np.tile(shown, (30, 1)))
    assert after.bits < before.bits
    angle = abs(after.left.ravel() @ before.left.ravel()) / (ROWS * DIM)
    assert angle < 0.7


def test_what_taught_nothing_is_followed_by_another_question(questioner: Questioner) -> None:
    """Each is clearly none of those before it and tells no more, until all have had their turn."""
    made = np.random.default_rng(2).standard_normal((2, D))
    asked = [questioner.next(made, skip) for skip in range(40)]
    lefts = np.array([question.left.ravel() for question in asked]) / np.sqrt(ROWS * DIM)
    again = next(n for n, left in enumerate(lefts) if n and np.array_equal(left, lefts[0]))
    assert again >= D  # four axes are as far apart as can be
    cosines = np.abs(lefts[:again] @ lefts[:again].T) - np.eye(again)
    assert cosines.max() <= 0.5 + 1e-6
    bits = [question.bits for question in asked[:again]]
    assert bits == sorted(bits, reverse=True)
    np.testing.assert_array_equal(lefts[again:], np.resize(lefts[:again], lefts[again:].shape))
    assert questioner.next(made).bits == bits[0]


def test_a_difference_is_in_the_models_features(questioner: Questioner) -> None:
    preferred, rejected = np.random.default_rng(4).standard_normal((2, 3, D))
    found = questioner.difference(preferred, rejected)
    np.testing.assert_allclose(found, (preferred - rejected) @ questioner.choices.projection)


def test_asking_learns_a_taste_sooner_than_chance(questioner: Questioner) -> None:
    """100 people of the model's own prior answer three questions: asked ones leave less unknown."""
    rng, response = np.random.default_rng(3), questioner.response.reshape(-1, D)
    model = questioner.choices
    known = {"asked": 0.0, "random": 0.0}
    for taste in rng.multivariate_normal(model.mean, model.covariance, 100):
        for way in known:
            made = np.zeros((0, D))
            for _ in range(3):
                left, right = rng.standard_normal((2, ROWS * DIM))
                if way == "asked":
                    question = questioner.next(made)
                    left, right = question.left.ravel(), question.right.ravel()
                difference = (left - right) @ response
                sign = 1 if rng.random() < 1 / (1 + np.exp(-taste @ difference)) else -1
                made = np.vstack([made, sign * difference])
            known[way] += model.fit(made).certainty
    assert known["asked"] > 1.2 * known["random"]


def test_the_same_choices_make_the_same_question_also_once_saved(
    questioner: Questioner, tmp_path: Path
) -> None:
    questioner.save(tmp_path / "questions.safetensors")
    again = Questioner.load(tmp_path / "questions.safetensors")
    made = np.random.default_rng(1).standard_normal((2, D))
    np.testing.assert_array_equal(again.next(made).left, questioner.next(made).left)
    assert again.next(made).scale is None
    replace(questioner, scale=1.5).save(tmp_path / "questions.safetensors")
    assert Questioner.load(tmp_path / "questions.safetensors").next(made).scale == 1.5


def test_a_file_without_questions_is_refused(questioner: Questioner, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="questions"):
        Questioner.load(tmp_path / "none.safetensors")
    questioner.choices.save(tmp_path / "model.safetensors")
    with pytest.raises(ReleaseError, match="response"):
        Questioner.load(tmp_path / "model.safetensors")
