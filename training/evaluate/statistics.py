"""Intervals. One comparison per user: Wilson. Several per user: bootstrap over users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z95 = 1.959963984540054
_DRAWS = 2000


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval. ``count``: comparisons."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f} % ({100 * self.low:.1f}–{100 * self.high:.1f}, n={self.count})"
        )


@dataclass(frozen=True)
class Difference:
    """One share less another, with its 95 % interval. ``count``: comparisons of either."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        value, low, high = (100 * x for x in (self.value, self.low, self.high))
        return f"{value:+.1f} points ({low:+.1f} to {high:+.1f}, n={self.count})"


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
    values: NDArray[np.floating], *, draws: int = _DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over users with its 95 % percentile interval; ``values`` has one entry per user."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def clustered_rate(
    wins: ArrayLike, users: ArrayLike, *, draws: int = _DRAWS, seed: int = 0
) -> Rate:
    """Share of ``wins`` ``[n]`` (1, 0, or ½ for a tie) when users ``[n]`` compared several times.

    Whole users are drawn again, with all their comparisons: a percentile interval. Where all users
    agree there is nothing to draw, and each counts as one trial of Wilson's.
    """
    won, counts = _per_user(wins, users)
    if np.ptp(won / counts) == 0:
        one_each = wilson(float((won / counts).sum()), len(counts))
        return Rate(one_each.value, one_each.low, one_each.high, int(counts.sum()))
    value, low, high = _bootstrap(
        lambda drawn: won[drawn].sum(-1) / counts[drawn].sum(-1), len(counts), draws, seed
    )
    return Rate(value, low, high, int(counts.sum()))


def rate_of_users(wins: ArrayLike, users: ArrayLike) -> Rate:
    """Share of ``wins`` ``[n]`` (1, 0, or ½ for a tie) of ``users`` ``[n]``: Wilson where each
    compared once, or nobody did, and else drawn again by whole users."""
    won, who = np.asarray(wins, np.float64), np.asarray(users)
    if len(np.unique(who)) == len(who) == len(won):
        return wilson(float(won.sum()), len(won))
    return clustered_rate(won, who)


def paired_difference(
    ours: ArrayLike, theirs: ArrayLike, users: ArrayLike, *, draws: int = _DRAWS, seed: int = 0
) -> Difference:
    """Share of wins of ``ours`` less that of ``theirs``, both ``[n]`` over the same comparisons.

    The pairing counts: a comparison that both win says nothing, and widens nothing. Where it came
    out alike for all users there is nothing to draw again: as many others as Wilson's interval
    leaves room for may be anywhere.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"theirs: {b.shape} for {a.shape} of ours")
    gained, counts = _per_user(a - b, users)
    if np.ptp(gained / counts) == 0:
        value, others = float(gained[0] / counts[0]), wilson(0, len(counts)).high
        low, high = value - others * (1 + value), value + others * (1 - value)
        return Difference(value, low, high, int(counts.sum()))
    value, low, high = _bootstrap(
        lambda drawn: gained[drawn].sum(-1) / counts[drawn].sum(-1), len(counts), draws, seed
    )
    return Difference(value, low, high, int(counts.sum()))


def clustered_mean(
    values: ArrayLike,
    users: ArrayLike,
    batches: ArrayLike | None = None,
    *,
    draws: int = _DRAWS,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of ``values`` ``[n]`` of ``users`` ``[n]`` with its 95 % percentile interval.

    Whole users are drawn again, with all their values. Where values of one of the ``batches``
    ``[n]`` share something too, such as their noise, so are batches, each draw of users crossed
    with one of batches (Owen's pigeonhole bootstrap); that is rather too wide than too narrow.
    """
    worth = np.asarray(values, np.float64)
    shared = np.zeros(len(worth), np.int64) if batches is None else np.asarray(batches)
    _, user = np.unique(np.asarray(users), return_inverse=True)
    _, batch = np.unique(shared, return_inverse=True)
    shape = user.max() + 1, batch.max() + 1
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (user, batch), worth)
    np.add.at(counts, (user, batch), 1)
    rng = np.random.default_rng(seed)
    often, together = (
        rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64) for n in shape
    )
    total, count = (((often @ x) * together).sum(1) for x in (sums, counts))
    low, high = np.percentile(total[count > 0] / count[count > 0], [2.5, 97.5])
    return float(worth.mean()), float(low), float(high)


def spearman(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Rank correlation along the last axis: ``[..., n]`` and ``[..., n]`` -> ``[...]``.

    Ties share their mean rank. NaN where one side is constant: it has no order to agree with.
    """
    a, b = (_ranks(np.asarray(v, np.float64)) for v in (x, y))
    a, b = (v - v.mean(-1, keepdims=True) for v in (a, b))
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / scale)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the last axis: how many are smaller, and half of the equal ones."""
    smaller = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return np.asarray(smaller + (equal - 1) / 2, np.float64)


def _per_user(
    values: ArrayLike, users: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and counts of every user's ``values``."""
    worth, who = np.asarray(values, np.float64), np.asarray(users)
    if worth.shape != who.shape or worth.ndim != 1 or not len(worth):
        raise ValueError(f"users: {who.shape} for {worth.shape} comparisons")
    _, index = np.unique(who, return_inverse=True)
    totals = np.bincount(index, worth).astype(np.float64)
    return totals, np.bincount(index).astype(np.float64)


def _bootstrap(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    users: int,
    draws: int,
    seed: int,
) -> tuple[float, float, float]:
    """``statistic`` of everybody, and its 95 % percentiles over users drawn with replacement."""
    rng = np.random.default_rng(seed)
    low, high = np.percentile(statistic(rng.integers(users, size=(draws, users))), [2.5, 97.5])
    return float(statistic(np.arange(users))), float(low), float(high)
