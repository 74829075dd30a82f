"""Scorers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from training.evaluate.scorers.aesthetic import AestheticScorer
from training.evaluate.scorers.base import Scorer
from training.evaluate.scorers.clip import ClipScorer
from training.evaluate.scorers.image_reward import ImageRewardScorer
from training.evaluate.scorers.source import directory

SCORERS: dict[str, Callable[[Path, str, torch.dtype], Scorer]] = {
    "clip": partial(ClipScorer, "clip"),
    "pickscore": partial(ClipScorer, "pickscore"),
    "hpsv2": partial(ClipScorer, "hpsv2"),
    "aesthetic": AestheticScorer,
    "imagereward": ImageRewardScorer,
}


def load_scorer(
    name: str, source: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Scorer:
    """A scorer of SCORERS from a directory or ``owner/name@revision``.

    ValueError for an unknown name, and for a source without its weights as safetensors.
    """
    if name not in SCORERS:
        raise ValueError(f"scorer: {name} is none of {', '.join(SCORERS)}")
    return SCORERS[name](directory(source), device, dtype)
