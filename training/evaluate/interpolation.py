"""Between two people: does the picture follow the share that each has in it?

PPD's question to its synthetic users (arXiv 2501.06655). Two people's embeddings are blended with
shares s and 1 - s. A pair of people is drawn the same prompts at the same seeds for every share;
the mean over them of the first one's reward is a point of their curve, and the rank correlation of
the curve with s is one number per pair. Many pairs averaged first would hide those who go back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.world import CAPTIONS, HELD_OUT_CAPTIONS
from training.evaluate.statistics import spearman
from training.evaluate.studio import Array, Panel

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
PICTURES = 16  # at every share


@dataclass(frozen=True)
class Blends:
    """What to draw: one picture per row of ``panel``, whose tastes are the first person's.

    Rows run over pairs, then shares, then pictures; ``shape`` says how many of each.
    """

    panel: Panel
    users: list[list[tuple[Array, float]]]
    shape: tuple[int, int, int]
    second: NDArray[np.int64]  # [rows], who the first is blended with


def blends(panel: Panel, embedding: Array, pairs: int, seed: int) -> Blends:
    """Of the first ``2·pairs`` users, two by two, ``embedding`` ``[N, rows, dim]``; as many pairs
    as there are people for."""
    pairs = min(pairs, len(panel) // 2)
    shape = pairs, len(SHARES), PICTURES
    pair, share, picture = (x.ravel() for x in np.indices(shape))
    first, second = 2 * pair, 2 * pair + 1
    held_out = np.array([CAPTIONS.index(c) for c in HELD_OUT_CAPTIONS])
    rng = np.random.default_rng(seed)
    caption = rng.choice(held_out, (pairs, PICTURES))
    seeds = seed + PICTURES * pair + picture
    drawn = replace(panel[first], captions=caption[pair, picture], seeds=seeds)
    users = [
        [(embedding[a], SHARES[s]), (embedding[b], 1 - SHARES[s])]
        for a, b, s in zip(first, second, share, strict=True)
    ]
    return Blends(drawn, users, shape, second)


def interpolation(drawn: Blends, first: Array, second: Array) -> dict[str, Any]:
    """From both people's rewards ``[rows]`` of the pictures drawn.

    A curve without any order correlates with nothing: 0.
    """
    own, other = (reward.reshape(drawn.shape).mean(2) for reward in (first, second))  # [P, shares]
    steps = np.diff(own.mean(0)), -np.diff(other.mean(0))
    ranks = [np.nan_to_num(spearman(np.array(SHARES), curve)) for curve in (own, -other)]
    return {
        "pairs": drawn.shape[0],
        "pictures_a_point": drawn.shape[2],
        "shares": list(SHARES),
        "spearman": [float(q) for q in np.quantile(ranks[0], (0.5, 0.25, 0.75))],
        "spearman_of_the_other": [float(q) for q in np.quantile(ranks[1], (0.5, 0.25, 0.75))],
        "mean_reward": own.mean(0).tolist(),
        "mean_reward_of_the_other": other.mean(0).tolist(),
        "every_step_increases": bool((np.concatenate(steps) > 0).all()),
    }
