"""Does a picture to someone's taste still show what was asked for?

The base's picture and the personal one share prompt and seed, and an independent judge says of each
what is right (``content.py``). A share of right pictures hardly tells a point's loss; the paired
difference does, as pictures that are right or wrong twice widen nothing.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.world import CAPTIONS, HELD_OUT_CAPTIONS
from training.evaluate.content import PARTS
from training.evaluate.statistics import paired_difference, wilson
from training.evaluate.studio import Panel

Right = NDArray[np.bool_]  # [N, parts], in the order of PARTS

_APART = 1_000_000  # between the seeds of one user's rounds


def content_table(ours: Right, base: Right, users: NDArray[np.int64]) -> dict[str, Any]:
    """By part and for their mean, over the same N prompts and seeds; ``users`` ``[N]``: whose.

    ``right`` counts pictures, so its interval holds for one picture per user.
    """
    table = {
        part: {
            "right": asdict(wilson(float(ours[:, k].sum()), len(ours))),
            "minus_base": float(ours[:, k].mean() - base[:, k].mean()),
            "difference": asdict(paired_difference(ours[:, k], base[:, k], users)),
        }
        for k, part in enumerate(PARTS)
    }
    together = paired_difference(ours.mean(1), base.mean(1), users)
    return table | {"mean": {"difference": asdict(together)}}


def further_rounds(panel: Panel, count: int, seed: int) -> tuple[Panel, NDArray[np.int64]]:
    """``count`` pictures more than one per user, in turn: new held-out captions and seeds, and
    whose they are. A shorter list is the beginning of a longer one."""
    users, rng = np.arange(count) % len(panel), np.random.default_rng(seed)
    rounds = 1 + np.arange(count) // len(panel)
    held_out = np.array([CAPTIONS.index(c) for c in HELD_OUT_CAPTIONS])
    captions = held_out[rng.integers(len(held_out), size=count)]
    more = panel[users]
    return replace(more, captions=captions, seeds=more.seeds + _APART * rounds), users
