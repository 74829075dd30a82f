"""Simulated people as the encoder sees them: readings of their choices, and where a taste known
exactly would lie in the same embedding space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ppd_serve.preferences.encoder import CHUNK
from ppd_serve.preferences.transform import BetweenUserTransform
from training.data.pool import PairSampler, Pool
from training.data.users import Tastes

if TYPE_CHECKING:
    from training.vlm import Reader

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Audience:
    """People with readings: VLM states ``[N, readings, hidden]``, each of ``pairs`` pairs."""

    tastes: Tastes
    states: Array
    pairs: NDArray[np.int64]

    def embeddings(self, transform: BetweenUserTransform) -> Array:
        """Every reading by itself, ``[N, readings, rows, dim]``."""
        return transform(self.states[:, :, None])

    def mean_embedding(self, transform: BetweenUserTransform) -> Array:
        """All of a person's readings together, by their pairs, ``[N, rows, dim]``."""
        weight = self.pairs / self.pairs.sum(1, keepdims=True)
        found = np.einsum("nk,nkrd->nrd", weight, self.embeddings(transform))
        return np.asarray(found, np.float32)

    def known(self, transform: BetweenUserTransform) -> Array:
        """Where readings of people of such tastes lie on average: ``[N, 1, dim]``."""
        return (taste_features(self.tastes) @ taste_to_embedding(self, transform))[:, None]


def taste_features(tastes: Tastes) -> Array:
    """A taste as the polynomial it is, ``[N, 17]``: linear and quadratic coefficients, and 1."""
    linear = tastes.weight + 2 * tastes.curvature * tastes.level
    return np.concatenate([linear, tastes.curvature, np.ones((len(tastes), 1), np.float32)], 1)


def taste_to_embedding(audience: Audience, transform: BetweenUserTransform) -> Array:
    """Ridge regression of embeddings on tastes, ``[17, dim]``: the space's own coordinates of a
    taste, read off training users."""
    x, target = taste_features(audience.tastes), audience.mean_embedding(transform)[:, 0]
    return np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ target).astype(np.float32)


def read_people(
    reader: Reader, pool: Pool, tastes: Tastes, readings: int, *, seed: int = 11
) -> Audience:
    """``readings`` readings of everybody, of 1-4 pairs, mostly 4."""
    rng, sampler, people = np.random.default_rng(seed), PairSampler(pool), len(tastes)
    pairs = np.where(
        rng.random((people, readings)) < 0.75, CHUNK, rng.integers(1, 4, (people, readings))
    )
    hidden = reader.model.config.text_config.hidden_size
    states = np.zeros((people, readings, hidden), np.float32)
    for reading in range(readings):
        preferred, rejected = sampler.draw(tastes, CHUNK, rng)
        for size in range(1, CHUNK + 1):
            who = np.flatnonzero(pairs[:, reading] == size)
            for part in np.array_split(who, max(1, len(who) // 64)):
                if len(part):
                    w, x = preferred[part, :size], rejected[part, :size]
                    with torch.no_grad():
                        state, _ = reader.states(pool.captions[w], w, x)
                    states[part, reading] = state.cpu().numpy()
    return Audience(tastes, states, pairs)
