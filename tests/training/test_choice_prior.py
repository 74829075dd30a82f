"""From choices alone, the prior finds what people look at and how they differ."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ppd_serve.preferences.choice_model import ChoiceModel
from training.choice_prior import fit_choice_model, fit_prior, fit_projection

Array = NDArray[np.floating]

COVARIANCE = np.array([[4.0, 1.2], [1.2, 1.0]])
MEAN = np.array([0.8, -0.5])


def chosen(tastes: Array, shown: Array, rng: np.random.Generator) -> Array:
    """Preferred minus rejected, of people ``[N, d]`` shown differences ``[N, n, d]``."""
    p = 1 / (1 + np.exp(-np.einsum("nkd,nd->nk", shown, tastes)))
    return shown * np.where(rng.random(p.shape) < p, 1, -1)[..., None]


def test_the_features_are_where_people_differ() -> None:
    """Not where all agree, nor where choices say nothing, however large that is."""
    rng = np.random.default_rng(0)
    tastes = np.zeros((300, 10))
    tastes[:, :2] = 2 * rng.normal(size=(300, 2))
    tastes[:, 2] = 2.0  # all agree
    shown = rng.normal(size=(300, 16, 10)) * np.r_[1, 1, 1, np.full(7, 3)]
    differences = chosen(tastes, shown, rng)
    projection = fit_projection(differences, 2)
    assert projection.shape == (10, 2)
    chance = 2 / 10
    assert (projection[:2] ** 2).sum() > 4 * chance * (projection**2).sum()
    assert (differences @ projection).reshape(-1, 2).std(0) == pytest.approx([1, 1], abs=0.1)


def test_the_prior_is_that_of_the_people() -> None:
    rng = np.random.default_rng(1)
    tastes = rng.multivariate_normal(MEAN, COVARIANCE, 200)
    own = chosen(tastes, 1.5 * rng.normal(size=(200, 16, 2)), rng)
    model = fit_prior(own, np.eye(2), rounds=12)
    np.testing.assert_allclose(model.mean, MEAN, atol=0.35)
    np.testing.assert_allclose(model.covariance, COVARIANCE, rtol=0.35, atol=0.3)


def test_people_may_have_chosen_any_number_of_times() -> None:
    rng = np.random.default_rng(2)
    tastes = rng.multivariate_normal(MEAN, COVARIANCE, 120)
    own = chosen(tastes, rng.normal(size=(120, 24, 2)), rng)
    uneven = own * (np.arange(24) < rng.integers(25, size=(len(own), 1)))[..., None]
    model = fit_prior(uneven, np.eye(2), rounds=5)
    assert np.linalg.eigvalsh(model.covariance).min() > 0
    assert model.covariance[0, 0] > 2 * model.covariance[1, 1]
    padded = fit_prior(np.pad(uneven, ((0, 0), (0, 3), (0, 0))), np.eye(2), rounds=5)
    np.testing.assert_allclose(padded.covariance, model.covariance, rtol=0.01)


def test_it_stops_when_nothing_moves_and_at_the_last_round() -> None:
    rng = np.random.default_rng(3)
    own = chosen(rng.normal(size=(40, 2)), rng.normal(size=(40, 8, 2)), rng)
    first, second = (fit_prior(own, np.eye(2), rounds=rounds) for rounds in (1, 2))
    assert not np.array_equal(first.covariance, second.covariance)
    contented = fit_prior(own, np.eye(2), rounds=2, tolerance=np.inf)
    np.testing.assert_array_equal(contented.covariance, first.covariance)


def test_from_pictures_and_choices_to_choices_foreseen() -> None:
    """New people's answers, after 8 choices, nearly as well as by the true prior."""
    rng = np.random.default_rng(4)
    states = rng.normal(size=(400, 12))
    looked_at = np.linalg.qr(rng.normal(size=(12, 2)))[0]
    tastes = rng.multivariate_normal(MEAN, COVARIANCE, 300)
    pairs = rng.integers(400, size=(2, 300, 16))
    difference = states[pairs[0]] - states[pairs[1]]
    first = chosen(tastes @ looked_at.T, difference, rng)
    swapped = (first != difference).any(-1)
    preferred, rejected = np.where(swapped, pairs[::-1], pairs)
    model = fit_choice_model(states.astype(np.float32), preferred[:200], rejected[:200], 2)
    truth = ChoiceModel(looked_at, MEAN, COVARIANCE)

    asked = rng.integers(400, size=(2, 100, 40))
    right = np.einsum("nqd,nd->nq", states[asked[0]] - states[asked[1]], tastes[200:] @ looked_at.T)
    found = {}
    for name, one in (("fitted", model), ("true", truth)):
        features = one.features(states)
        own = features[preferred[200:, :8]] - features[rejected[200:, :8]]
        mean = one.fit_each(own)[0]
        margin = np.einsum("nqd,nd->nq", features[asked[0]] - features[asked[1]], mean)
        found[name] = (margin * right > 0).mean()
    assert found["true"] > 0.75
    assert found["true"] - 0.03 < found["fitted"]
