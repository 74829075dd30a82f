"""Bayes' rule over the frozen prior, against the world's own people and choices."""

from __future__ import annotations

import numpy as np

from training.data.bayes import Prior, reward_features
from training.data.users import CHOICE_SHARPNESS, people


def drawn(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, n, 8)).astype(np.float32)


def test_rewards_are_linear_in_their_features() -> None:
    someone, a, b = people("dev", 4), drawn(6), drawn(6, 1)
    linear = someone.weight + 2 * someone.curvature * someone.level
    coefficients = np.concatenate([linear, someone.curvature], 1)
    expected = someone.reward(a) - someone.reward(b)
    found = np.einsum("bqk,bk->bq", reward_features(a, b), coefficients)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_without_choices_everybody_is_as_likely() -> None:
    prior = Prior.of(50, 0)
    np.testing.assert_allclose(prior.posterior(drawn(0), drawn(0)), 1 / 50)


def test_the_posterior_is_bayes_rule() -> None:
    prior, a, b = Prior.of(30, 0), drawn(3), drawn(3, 1)
    margin = np.einsum("bqk,sk->bqs", reward_features(a, b), prior.coefficients)
    likelihood = (1 / (1 + np.exp(-CHOICE_SHARPNESS * margin))).prod(1)
    expected = likelihood / likelihood.sum(1, keepdims=True)
    np.testing.assert_allclose(prior.posterior(a, b), expected, rtol=1e-4, atol=1e-9)


def test_what_it_foresees_comes_true_as_often_as_it_says() -> None:
    """Calibrated, on people it has never seen: of answers foreseen with p, a share p is given."""
    crowd, rng = people("dev", 400), np.random.default_rng(5)
    prior = Prior.of(3000, 1)
    pictures = rng.normal(size=(4, 400, 12, 8)).astype(np.float32)
    chose_first = crowd.prefers_first(pictures[0, :, :4], pictures[1, :, :4], rng)[..., None]
    a, b = pictures[0, :, :4], pictures[1, :, :4]
    posterior = prior.posterior(np.where(chose_first, a, b), np.where(chose_first, b, a))
    said = prior.foreseen(posterior, pictures[2], pictures[3])
    came = crowd.prefers_first(pictures[2], pictures[3], rng)
    for low in (0.1, 0.3, 0.5, 0.7):
        inside = (said >= low) & (said < low + 0.2)
        deviation = 0.5 / np.sqrt(inside.sum())
        assert abs(came[inside].mean() - said[inside].mean()) < 4 * deviation
    assert ((said > 0.5) == came).mean() > 0.6


def test_the_mean_taste_lies_near_the_true_one() -> None:
    crowd, rng = people("dev", 100), np.random.default_rng(6)
    a, b = (rng.normal(size=(100, 64, 8)).astype(np.float32) for _ in range(2))
    first = crowd.prefers_first(a, b, rng)[..., None]
    prior = Prior.of(20_000, 2)
    found = prior.mean(prior.posterior(np.where(first, a, b), np.where(first, b, a)))
    true = crowd.weight + 2 * crowd.curvature * crowd.level
    cosine = (found.weight * true).sum(1) / (
        np.linalg.norm(found.weight, axis=1) * np.linalg.norm(true, axis=1)
    )
    assert np.median(cosine) > 0.8
