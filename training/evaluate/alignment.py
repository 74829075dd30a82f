"""Style alignment, Diffusion-RPO's measure (arXiv 2406.06382): how near pictures come to a style.

The distance between a set of pictures and a style's set is Fréchet's between the two normal
distributions of their features: ``|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2·(Σ₁Σ₂)^½)``. With the features of
Inception that is FID; here any will do, CLIP's image tower is the usual choice
(``ClipScorer.features``), and distances by different features never compare.

With few pictures it is too large, by an excess that doubles as their number halves, and
covariances of fewer pictures than features are flat. So both sets are cut to one size, and
``floor`` says what the style's own pictures score against each other at that size: no picture set
can be expected below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

Array = NDArray[np.float64]
Features = Callable[[Sequence[Image]], NDArray[np.floating]]  # pictures -> [N, dim]


_DRAWS = 300  # two roots of a covariance each: minutes, with a thousand features


@dataclass(frozen=True)
class Alignment:
    """``distance`` of pictures to a style, and of the style to itself, at ``count`` pictures.

    ``low`` and ``high``: where the distance lies if both sets were drawn again (95 %).
    """

    distance: float
    low: float
    high: float
    floor: float
    count: int


def style_alignment(
    features: Features, pictures: Sequence[Image], style: Sequence[Image], *, seed: int = 0
) -> Alignment:
    """``pictures`` against ``style``; lower is nearer. ValueError with too few of either."""
    _enough(pictures, style)
    return aligned(features(pictures), features(style), seed=seed)


def aligned(
    pictures: NDArray[np.floating], style: NDArray[np.floating], *, seed: int = 0
) -> Alignment:
    """The same from features ``[N, dim]`` and ``[M, dim]``."""
    _enough(pictures, style)
    drawn, target = (np.asarray(found, np.float64) for found in (pictures, style))
    rng = np.random.default_rng(seed)
    drawn, target = rng.permutation(drawn), rng.permutation(target)
    count = min(len(drawn), len(target) // 2)
    first, second = target[:count], target[count : 2 * count]
    drawn, floor = drawn[:count], frechet(second, first)
    distance = frechet(drawn, first)
    low, high = _interval(drawn, first, distance, rng)
    return Alignment(distance, low, high, floor, count)


def _interval(
    drawn: Array, style: Array, distance: float, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % by the bootstrap over pictures of both sets.

    Pictures that are drawn twice make every set look further from any other, as fewer pictures do;
    so the draws say how far to either side of their own mean the distance lies, not where.
    """
    pick = rng.integers(len(drawn), size=(_DRAWS, 2, len(drawn)))
    found = np.array([frechet(drawn[a], style[b]) for a, b in pick])
    low, high = np.percentile(found - found.mean(), [2.5, 97.5])
    return max(float(distance + low), 0.0), float(distance + high)


def _enough(pictures: Sized, style: Sized) -> None:
    if len(pictures) < 2 or len(style) < 4:
        raise ValueError(f"style: {len(style)} of 4, or pictures: {len(pictures)} of 2")


def frechet(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Between two sets of features ``[N, dim]`` and ``[M, dim]``, at least two of each."""
    (mean_a, cov_a), (mean_b, cov_b) = (
        (x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]))
        for x in (np.asarray(first, np.float64), np.asarray(second, np.float64))
    )
    return frechet_of_normals(mean_a, cov_a, mean_b, cov_b)


def frechet_of_normals(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Between two normal distributions, means ``[dim]`` and covariances ``[dim, dim]``.

    ``(Σ₁Σ₂)^½`` is no symmetric matrix, but it has the trace of ``(Σ₁^½ Σ₂ Σ₁^½)^½``, which is:
    eigenvalues are real, and those that rounding pushed below zero are zero.
    """
    root = _root(cov_a)
    inner = root @ cov_b @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    apart = ((mean_a - mean_b) ** 2).sum()
    return float(max(apart + np.trace(cov_a) + np.trace(cov_b) - 2 * shared, 0.0))


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
