"""AI feedback: pairs labelled anew by a scorer (Diffusion-DPO, arXiv 2311.12908)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ppd_serve.preferences.pair_encoder import open_picture
from training.data.choices import Choice, Skipped

_PAIRS_AT_ONCE = 16


class Scorer(Protocol):
    """How well each picture (RGB) serves its prompt: ``N`` of both -> ``[N]``, more is better."""

    def __call__(self, prompts: list[str], pictures: list[Image.Image], /) -> ArrayLike: ...


def scored(choices: Iterable[Choice], scorer: Scorer, skipped: Skipped) -> Iterator[Choice]:
    """The same choices with the scorer's ``scores``.

    Scores that are not numbers tell nothing: they are counted and left out. ``skipped`` is the one
    that the source of ``choices`` counts in, where they were kept until now. Raises ``ValueError``
    when the scorer does not give one score for each picture.
    """
    choices = iter(choices)
    while some := list(islice(choices, _PAIRS_AT_ONCE)):
        prompts = [choice.prompt for choice in some for _ in range(2)]
        encoded = [data for choice in some for data in (choice.preferred, choice.rejected)]
        pictures = [open_picture(data) for data in encoded]
        scores = np.asarray(scorer(prompts, pictures), np.float64)
        if scores.shape != (len(pictures),):
            raise ValueError(f"scorer: {len(pictures)} pictures got scores {list(scores.shape)}")
        for choice, (w, x) in zip(some, scores.reshape(-1, 2), strict=True):
            if np.isnan(w) or np.isnan(x):
                skipped.drop("no score")
            else:
                yield replace(choice, scores=(float(w), float(x)))


def relabel(choices: Iterable[Choice], scorer: Scorer, skipped: Skipped) -> Iterator[Choice]:
    """The same pairs as ``scored`` ones, in which the picture with the higher score is the
    preferred one. Equal scores are ties: they are counted in ``skipped`` and left out, too."""
    for choice in scored(choices, scorer, skipped):
        assert choice.scores is not None
        w, x = choice.scores
        if w == x:
            skipped.drop("tie")
        else:
            yield choice if w > x else turned(choice)


def turned(choice: Choice) -> Choice:
    """The same two pictures, the other one preferred."""
    return replace(
        choice,
        preferred=choice.rejected,
        rejected=choice.preferred,
        preferred_id=choice.rejected_id,
        rejected_id=choice.preferred_id,
        scores=choice.scores and choice.scores[::-1],
    )
