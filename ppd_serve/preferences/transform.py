"""The linear map from hidden states to a preference embedding, fitted on training users.

Raw last-layer states of different users are nearly parallel (cosine 0.94-0.98). What matters is
what differs *between* users and not between two readings of the *same* user: whiten by the
within-user covariance, keep the top between-user directions, scale them to unit variance. This is
the discriminant front end of speaker verification (LDA, as in i-vector systems).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Array = NDArray[np.float32]


@dataclass(frozen=True)
class BetweenUserTransform:
    """One affine map per row: ``mean`` ``[rows, hidden]``, ``matrix`` ``[rows, hidden, dim]``."""

    mean: Array
    matrix: Array

    def __call__(self, states: Array) -> Array:
        """Hidden states ``[..., rows, hidden]`` -> embeddings ``[..., rows, dim]``."""
        return np.einsum("...rh,rhd->...rd", states - self.mean, self.matrix).astype(np.float32)

    def save(self, path: Path) -> None:
        save_file({"mean": self.mean, "matrix": self.matrix}, path)

    @classmethod
    def load(cls, path: Path) -> BetweenUserTransform:
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["matrix"])


def fit_transform(
    states: Array, directions: int, *, shrinkage: float = 0.1
) -> BetweenUserTransform:
    """Fit on ``[users, readings, rows, hidden]``: several readings of each of many users.

    ``shrinkage`` mixes the within-user covariance with a multiple of the identity (Ledoit and
    Wolf's target), so that directions in which readings hardly move do not blow up.
    """
    users, readings, rows, hidden = states.shape
    means, matrices = [], []
    for row in range(rows):
        x = states[:, :, row].astype(np.float64)
        mean = x.mean((0, 1))
        user_mean = x.mean(1)
        deviation = (x - user_mean[:, None]).reshape(-1, hidden)
        within = deviation.T @ deviation / (users * (readings - 1))
        centred = user_mean - mean
        between = centred.T @ centred / (users - 1) - within / readings
        target = np.trace(within) / hidden * np.eye(hidden)
        value, vector = np.linalg.eigh((1 - shrinkage) * within + shrinkage * target)
        whiten = vector / np.sqrt(value)
        _, direction = np.linalg.eigh(whiten.T @ between @ whiten)
        matrix = whiten @ direction[:, ::-1][:, :directions]
        matrix /= ((x - mean).reshape(-1, hidden) @ matrix).std(0)
        means.append(mean)
        matrices.append(matrix)
    return BetweenUserTransform(
        np.stack(means).astype(np.float32), np.stack(matrices).astype(np.float32)
    )
