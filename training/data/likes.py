"""Single pictures that were liked or not, from pairs: what Diffusion-KTO trains on.

A picture is liked if it was preferred at least once (arXiv 2404.04465).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# γ of the paper: the share of liked pictures among those drawn.
LIKED_SHARE = 0.8

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Likes:
    """``N`` pictures and who judged them: ``picture``, ``user``, ``liked`` (bool), and ``pair``,
    the pair that the verdict is from (and so the prompt), each ``[N]``."""

    picture: Index
    user: Index
    liked: NDArray[np.bool_]
    pair: Index

    def __len__(self) -> int:
        return len(self.picture)


def liked_pictures(
    user: ArrayLike, preferred: ArrayLike, rejected: ArrayLike, *, by_user: bool
) -> Likes:
    """Every picture of the pairs once, or with ``by_user`` once for each person who saw it.

    user, preferred, rejected: indices ``[P]``. Without ``by_user`` a picture is liked if anyone
    preferred it, and ``user`` is the first who did, or else the first who saw it.
    """
    user, preferred, rejected = (np.asarray(a, np.int64) for a in (user, preferred, rejected))
    pairs = np.arange(len(user))
    # Preferences stand first, so that the first place where a picture is found is its verdict.
    picture = np.concatenate([preferred, rejected])
    pair = np.concatenate([pairs, pairs])
    whose = user[pair] if by_user else np.zeros_like(pair)
    _, first = np.unique(np.stack([whose, picture]), axis=1, return_index=True)
    return Likes(picture[first], user[pair[first]], first < len(user), pair[first])


class LikeSampler:
    """Draws places in ``liked`` ``[N]``, with replacement: a liked one with chance ``share``.

    Raises ``ValueError`` if what ``share`` asks for isn't there.
    """

    def __init__(self, liked: ArrayLike, share: float = LIKED_SHARE) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share: {share} is not between 0 and 1")
        liked = np.asarray(liked, bool)
        self._places = np.argsort(~liked, kind="stable")  # the liked ones first
        self._liked, self._share = int(liked.sum()), share
        if (share > 0 and not liked.any()) or (share < 1 and liked.all()):
            raise ValueError("liked: needs pictures that were liked and others that were not")

    def draw(self, count: int, rng: np.random.Generator) -> Index:
        """``[count]`` places."""
        from_liked = rng.random(count) < self._share
        start = np.where(from_liked, 0, self._liked)
        size = np.where(from_liked, self._liked, len(self._places) - self._liked)
        return self._places[start + (rng.random(count) * size).astype(np.int64)]
