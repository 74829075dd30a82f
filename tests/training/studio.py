"""Small pools of the studio world, painted in this process."""

from __future__ import annotations

import numpy as np

from training.data.judge import scores
from training.data.pool import Pool
from training.data.world import CAPTIONS, TRAIN_CAPTIONS, render, sample_style


def small_pool(count: int, seed: int = 0, captions: int = 4) -> Pool:
    """``count`` pictures over the first few training captions."""
    rng = np.random.default_rng(seed)
    chosen = [TRAIN_CAPTIONS[i % captions] for i in range(count)]
    images = np.stack([render(c, sample_style(rng), 9_000_000 + i) for i, c in enumerate(chosen)])
    index = np.array([CAPTIONS.index(c) for c in chosen])
    return Pool(images, index, scores(images, chosen))
