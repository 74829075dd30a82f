"""Fits the choice model on training users: which features to look at, and how tastes are spread.

Both steps know nothing but who chose which picture. The features are the directions of the image
tower in which choices of different people differ and choices of one person agree (the same
discriminant as the embedding's); the prior is empirical Bayes by expectation maximisation, with the
Gaussian that ``choice_model`` finds nearest to a person's posterior as the expectation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ppd_serve.preferences.choice_model import Array, ChoiceModel
from ppd_serve.preferences.transform import fit_transform

# Between-user directions are found among hundreds of noisy ones: dev people preferred a within-user
# covariance that is mostly round.
_SHRINKAGE = 0.6


def fit_projection(differences: Array, directions: int) -> Array:
    """``[users, choices, hidden]`` preferred minus rejected -> ``[hidden, directions]``.

    At least two choices of everybody: what one person's have in common is told from the rest.
    """
    found = fit_transform(
        np.asarray(differences, np.float32)[:, :, None], directions, shrinkage=_SHRINKAGE
    )
    # Each feature has unit variance over pairs; the mean cancels in every difference of pictures.
    return found.matrix[0].astype(np.float64)


def fit_prior(
    differences: Array, projection: Array, *, rounds: int = 30, tolerance: float = 1e-3
) -> ChoiceModel:
    """``[users, choices, d]``: features of preferred minus rejected, zeros where there is none.

    Ends when the mean log-spread of tastes moves by less than ``tolerance`` in a round.
    """
    d = projection.shape[1]
    model = ChoiceModel(projection, np.zeros(d), np.eye(d))
    for _ in range(rounds):
        means, covariances = model.fit_each(differences)
        deviation = means - means.mean(0)
        covariance = covariances.mean(0) + deviation.T @ deviation / len(means)
        moved = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(model.covariance)[1]
        model = ChoiceModel(projection, means.mean(0), covariance)
        if abs(moved) < tolerance * d:
            break
    return model


def fit_choice_model(
    states: Array,
    preferred: NDArray[np.int64],
    rejected: NDArray[np.int64],
    directions: int = 16,
) -> ChoiceModel:
    """From the tower's ``states`` ``[pictures, hidden]`` and training users' choices ``[N, n]``."""
    projection = fit_projection(states[preferred] - states[rejected], directions)
    features = np.asarray(states, np.float64) @ projection
    return fit_prior(features[preferred] - features[rejected], projection)
