"""Bayes' rule over the world's own prior: what an ideal reader learns from a person's choices.

It knows how tastes are spread, how noisy choices are, and every pixel score; so nothing that reads
the same choices foresees further ones better. The ceiling of every encoder, and its teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.users import CHOICE_SHARPNESS, Tastes, sample_tastes

Array = NDArray[np.floating]


def reward_features(better: Array, worse: Array) -> Array:
    """Scores ``[..., 8]`` -> ``[..., 16]``, of which every reward's difference is a linear map."""
    return np.concatenate([better - worse, worse**2 - better**2], -1)


@dataclass(frozen=True)
class Prior:
    """People drawn from the prior as coefficients on ``reward_features``: ``[samples, 16]``."""

    coefficients: Array

    @classmethod
    def of(cls, samples: int, seed: int) -> Prior:
        drawn = sample_tastes(samples, np.random.default_rng(seed))
        linear = drawn.weight + 2 * drawn.curvature * drawn.level
        return cls(np.concatenate([linear, drawn.curvature], 1))

    def posterior(self, preferred: Array, rejected: Array) -> Array:
        """Scores of n choices ``[B, n, 8]`` -> how likely each of the drawn: ``[B, samples]``."""
        margin = reward_features(preferred, rejected) @ self.coefficients.T
        likelihood = -np.logaddexp(0, -CHOICE_SHARPNESS * margin).sum(1)
        weight = np.exp(likelihood - likelihood.max(1, keepdims=True))
        return np.asarray(weight / weight.sum(1, keepdims=True))

    def mean(self, posterior: Array) -> Tastes:
        """The taste expected: ``[B, samples]`` -> B of them."""
        linear, curvature = np.split((posterior @ self.coefficients).astype(np.float32), 2, axis=1)
        return Tastes(linear, curvature, np.zeros_like(curvature))

    def foreseen(self, posterior: Array, first: Array, second: Array) -> Array:
        """P(first chosen) of further questions ``[B, Q, 8]``: ``[B, Q]``."""
        margin = reward_features(first, second) @ self.coefficients.T
        chosen = 1 / (1 + np.exp(-CHOICE_SHARPNESS * margin))
        return np.asarray((chosen @ posterior[:, :, None])[..., 0])
