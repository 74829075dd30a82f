"""A simulated person's taste in words, for pictures that people look at."""

from __future__ import annotations

import numpy as np

from training.data.users import Tastes
from training.data.world import AXES

WORDS = {
    "warmth": ("warm light", "cool light"),
    "brightness": ("bright pictures", "dark pictures"),
    "colour": ("strong colours", "muted colours"),
    "outline": ("bold outlines", "no outlines"),
    "hatching": ("hatching", "smooth surfaces"),
    "confetti": ("confetti", "no confetti"),
    "vignette": ("dark corners", "light corners"),
    "frame": ("wide frames", "no frame"),
}


def in_words(taste: Tastes, most: int = len(AXES)) -> str:
    """One person's ``most`` linear wishes, the strongest first."""
    weight = taste.weight[0]
    order = [i for i in np.argsort(-np.abs(weight), kind="stable")[:most] if weight[i]]
    return " and ".join(WORDS[AXES[i]][0 if weight[i] > 0 else 1] for i in order)
