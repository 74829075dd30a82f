"""The studio's people: hidden tastes over the style axes, and noisy Bradley-Terry choices.

A taste is a reward over judged scores z (``judge.scores``): ``r(z) = w·z - Σ q·(z - t)²``.
Three kinds of people: sparse (2-3 axes), dense (all axes), and particular ones who also want one
axis at one level ("not too bright"). Rewards have comparable spread for all kinds.

Frozen: ``fingerprint.py`` hashes this file; a change voids every published figure (issue #2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.world import AXES

Array = NDArray[np.float32]

# How sure a person is of a choice: P(a over b) = σ(4·(r(a) - r(b))), about 88 % agreement.
CHOICE_SHARPNESS = 4.0
KINDS = ("sparse", "dense", "particular")
_KIND_SHARES = (0.6, 0.2, 0.2)
# Most people lean one way on some axes (chance that an active axis is liked, order of AXES).
_LIKED = np.array([0.60, 0.60, 0.65, 0.50, 0.40, 0.40, 0.45, 0.50])

# One stream of people per purpose; nobody is in two.
SPLIT_SEEDS = {"train": 101, "dev": 202, "test": 303, "confirm": 404}


@dataclass(frozen=True)
class Tastes:
    """``N`` people: linear weights, curvatures and wanted levels, each ``[N, 8]``."""

    weight: Array
    curvature: Array
    level: Array

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: slice | NDArray[np.integer] | list[int]) -> Tastes:
        return Tastes(self.weight[index], self.curvature[index], self.level[index])

    def reward(self, scores: Array) -> Array:
        """``[N, ..., 8]`` -> ``[N, ...]``: what each person feels about their own pictures."""
        shape = (len(self),) + (1,) * (scores.ndim - 2) + (len(AXES),)
        w, q, t = (a.reshape(shape) for a in (self.weight, self.curvature, self.level))
        return (w * scores - q * (scores - t) ** 2).sum(-1)

    def prefers_first(self, first: Array, second: Array, rng: np.random.Generator) -> NDArray:
        """Noisy choices between scores ``[N, ..., 8]``: True where the first is chosen."""
        margin = CHOICE_SHARPNESS * (self.reward(first) - self.reward(second))
        return rng.random(margin.shape) < 1 / (1 + np.exp(-margin))


def sample_tastes(count: int, rng: np.random.Generator) -> Tastes:
    """Draw ``count`` people from the frozen prior."""
    axes = len(AXES)
    weight, curvature, level = (np.zeros((count, axes), np.float32) for _ in range(3))
    for i in range(count):
        kind = rng.choice(len(KINDS), p=_KIND_SHARES)
        active = axes if kind == 1 else int(rng.integers(2, 4))
        chosen = rng.choice(axes, active, replace=False)
        sign = np.where(rng.random(active) < _LIKED[chosen], 1.0, -1.0)
        size = np.abs(rng.normal(size=active)) if kind == 1 else rng.uniform(0.5, 1.0, active)
        weight[i, chosen] = sign * size
        weight[i] /= np.linalg.norm(weight[i])
        if kind == 2:
            axis = chosen[0]
            weight[i, axis] = 0
            weight[i] *= 0.75 / max(float(np.linalg.norm(weight[i])), 1e-6)
            curvature[i, axis] = 0.5
            level[i, axis] = rng.uniform(-0.7, 0.7)
    return Tastes(weight, curvature, level)


def people(split: str, count: int) -> Tastes:
    """The first ``count`` people of a split (``train``, ``dev``, ``test``, ``confirm``)."""
    return sample_tastes(count, np.random.default_rng(SPLIT_SEEDS[split]))
