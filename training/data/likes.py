"""Single pictures that were liked or not, from pairs and from what people said of them: what
Diffusion-KTO trains on.

In pairs a picture is liked if it was preferred at least once (arXiv 2404.04465). Somebody's own
word about a picture stands over what their pairs would say.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.data.choice_set import ChoiceSet, Index, NoChoices

# γ of the paper: the share of liked pictures among those drawn.
LIKED_SHARE = 0.8


@dataclass(frozen=True)
class Likes:
    """``N`` pictures and who judged them: ``picture``, ``user``, ``prompt`` and ``liked`` (bool),
    each ``[N]``."""

    picture: Index
    user: Index
    prompt: Index
    liked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, kept: NDArray[np.bool_]) -> Likes:
        return Likes(*(getattr(self, one.name)[kept] for one in fields(self)))


def liked_pictures(
    user: ArrayLike,
    prompt: ArrayLike,
    preferred: ArrayLike,
    rejected: ArrayLike,
    judged: ArrayLike | None = None,
    *,
    by_user: bool,
) -> Likes:
    """Every picture of the pairs, or judged alone, once; with ``by_user`` once for each person who
    saw it.

    user, prompt, preferred, rejected: indices ``[P]``; judged: ``ChoiceSet.judged`` ``[V, 4]``.
    Without ``by_user`` a picture is liked if anyone likes it, and ``user`` is the first who does,
    or else the first who saw it.
    """
    user, prompt, preferred, rejected = (
        np.asarray(a, np.int64) for a in (user, prompt, preferred, rejected)
    )
    own = np.zeros((0, 4), np.int64) if judged is None else np.asarray(judged, np.int64)
    pairs = np.arange(len(user))
    # One verdict a place. The first of somebody on a picture is what they think of it: their own
    # word, else that they preferred it once, else that they rejected it.
    whose = np.concatenate([own[:, 0], user, user])
    picture = np.concatenate([own[:, 2], preferred, rejected])
    asked = np.concatenate([own[:, 1], prompt, prompt])
    liked = np.concatenate([own[:, 3] > 0, pairs >= 0, pairs < 0])
    key = whose * (picture.max(initial=0) + 1) + picture
    _, first = np.unique(key, return_index=True)
    if not by_user:
        first = first[np.lexsort((first, ~liked[first]))]
        first = first[np.unique(picture[first], return_index=True)[1]]
    return Likes(picture[first], whose[first], asked[first], liked[first])


def has_reading(likes: Likes, choices: ChoiceSet) -> NDArray[np.bool_]:
    """``[N]``: whose judge can be told from readings that never saw the picture."""
    judged = zip(likes.user.tolist(), likes.picture.tolist(), strict=True)
    return np.array([len(choices.readings_for_picture(*one)) > 0 for one in judged], bool)


class LikeSampler:
    """Draws places in ``liked`` ``[N]``, with replacement: a liked one with chance ``share``.

    Raises NoChoices if what ``share`` asks for isn't there.
    """

    def __init__(self, liked: ArrayLike, share: float = LIKED_SHARE) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share: {share} is not between 0 and 1")
        liked = np.asarray(liked, bool)
        self._places = np.argsort(~liked, kind="stable")  # the liked ones first
        self._liked, self._share = int(liked.sum()), share
        if (share > 0 and not liked.any()) or (share < 1 and liked.all()):
            raise NoChoices(
                f"liked: {self._liked} of {len(liked)} pictures were; it needs such and others"
            )

    def draw(self, count: int, rng: np.random.Generator) -> Index:
        """``[count]`` places."""
        from_liked = rng.random(count) < self._share
        start = np.where(from_liked, 0, self._liked)
        size = np.where(from_liked, self._liked, len(self._places) - self._liked)
        return self._places[start + (rng.random(count) * size).astype(np.int64)]
