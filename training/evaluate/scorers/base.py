"""What every scorer is: pictures and their prompts in, one number each out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

Scores = NDArray[np.float32]
BATCH = 32


class Scorer(Protocol):
    """``N`` prompts and their ``N`` pictures -> float32 ``[N]``, higher is better.

    ValueError if there are not as many prompts as pictures.
    """

    name: str

    def __call__(self, prompts: Sequence[str], images: Sequence[Image]) -> Scores: ...


def batches(prompts: Sequence[str], images: Sequence[Image]) -> Iterator[tuple[list[str], list]]:
    """Prompts and RGB pictures, ``BATCH`` at a time."""
    if len(prompts) != len(images):
        raise ValueError(f"prompts: {len(prompts)} for {len(images)} images")
    for start in range(0, len(images), BATCH):
        part = np.s_[start : start + BATCH]
        yield list(prompts[part]), [image.convert("RGB") for image in images[part]]


def gathered(parts: Sequence[Tensor]) -> Scores:
    """Batches of scores ``[n]`` as one array ``[N]``."""
    return torch.cat([torch.zeros(0), *(p.float().cpu() for p in parts)]).numpy()
