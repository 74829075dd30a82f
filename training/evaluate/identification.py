"""Does an embedding say whose it is? Users found again among all users, by another reading.

PPD reports top-16 accuracy over 300 users for a trained classifier (arXiv 2501.06655). Here nothing
is trained: each reading is left out in turn and the users are ranked by the cosine of their other
readings with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluate.statistics import Rate, wilson


@dataclass(frozen=True)
class Identification:
    """``top[k]``: how often the right user is among the first ``k``; ``chance[k]``: by luck."""

    users: int
    top: dict[int, Rate]
    chance: dict[int, float]


def identification(
    readings: NDArray[np.floating], top: Sequence[int] = (1, 5, 16)
) -> Identification:
    """``[users, readings, rows, dim]``, at least two of each of the first two.

    A user is one trial, whose success is the share of their readings that found them: readings of
    one user are no independent trials, so the intervals are, if anything, too wide.
    """
    if readings.ndim != 4 or min(readings.shape[:2]) < 2:
        raise ValueError(
            f"readings: {readings.shape}, not [users, readings, rows, dim] with two of each"
        )
    ranks = left_out_ranks(readings)
    users = len(ranks)
    within = [k for k in top if k <= users]
    return Identification(
        users,
        {k: wilson(float((ranks < k).mean(1).sum()), users) for k in within},
        {k: k / users for k in within},
    )


def left_out_ranks(readings: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many other users lie at least as near each left-out reading: ``[users, readings]``.

    0 is found at once; a tie counts against. Rows are compared one beside the other, not averaged:
    they may come from different layers.
    """
    unit = _unit(readings.reshape(*readings.shape[:2], -1).astype(np.float64))
    total = unit.sum(1)
    ranks = []
    for k in range(unit.shape[1]):
        likeness = unit[:, k] @ _unit(total - unit[:, k]).T  # [left out, users]
        own = np.diag(likeness)[:, None]
        ranks.append((likeness >= own - 1e-12).sum(1) - 1)
    return np.stack(ranks, 1)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
