"""People who agree in part, as Pick-a-Pic's do: the studio's hardly agree, which leaves a method
without users nothing to learn.

PickScore, one judge for everybody, foresees 70 % of the choices on Pick-a-Pic (arXiv 2305.01569);
a judge for everybody foresees as many here (69 %) where two fifths of every taste are everybody's.
"""

from __future__ import annotations

import numpy as np

from training.data.users import Tastes, people

_ASKED = 2000  # people whose mean says which way most of them lean


def with_shared_taste(tastes: Tastes, share: float) -> Tastes:
    """The same people, ``share`` (0 to 1) of whose taste is the one that most studio people lean
    to, and the rest their own."""
    mean = people("train", _ASKED).weight.mean(0)
    own = 1 - share
    return Tastes(
        (own * tastes.weight + share * mean / np.linalg.norm(mean)).astype(np.float32),
        own * tastes.curvature,
        tastes.level,
    )
