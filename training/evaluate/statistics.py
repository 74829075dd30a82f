"""Intervals. One comparison per user: Wilson. Several per user: bootstrap over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f} % ({100 * self.low:.1f}–{100 * self.high:.1f}, n={self.count})"
        )


def wilson(wins: float, count: int) -> Rate:
    """Wilson's score interval for ``wins`` of ``count`` trials (a tie is half a win)."""
    if count == 0:
        return Rate(0.0, 0.0, 1.0, 0)
    p, z2 = wins / count, _Z95**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 * np.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Rate(p, float(centre - half), float(centre + half), count)


def win_rate(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> Rate:
    """How often ours beats theirs, one comparison per user."""
    wins = (ours > theirs).sum() + 0.5 * (ours == theirs).sum()
    return wilson(float(wins), len(ours))


def bootstrap_mean(
    values: NDArray[np.floating], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over users with its 95 % percentile interval; ``values`` has one entry per user."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
