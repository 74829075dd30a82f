"""What every objective trains on: choices with all that is expensive computed once.

P pairs of U users over M pictures and Q prompts, R readings of users. Pictures are latents, prompts
are text states, users are readings through the release's transform; on disk a directory of plain
arrays, so that a set larger than memory is mapped, not loaded (``save``/``load``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.closeness import pair_distance, unit

Array = NDArray[np.float32]
Index = NDArray[np.int64]
_NONE: Index = np.zeros(0, np.int64)
ABOUT = "about.json"  # written last: a directory without it holds no whole set


class NoChoices(ValueError):
    """Nothing is left to learn from; the message says what became of it."""


@dataclass(frozen=True)
class ChoiceSet:
    """``text`` has one more entry than there are prompts: the empty prompt, last.

    ``readings`` ``[R, rows, dim]`` are embeddings, ``reading_pairs`` how many pairs each has read.
    ``read_in`` is the reading that saw a pair, or -1: nobody learns a choice by having read it.
    ``read_for``: a reading for a pair whose pictures all the user's readings saw, of the user's
    pairs that show neither, or -1; it is for this pair alone, and its ``reading_user`` is -1.
    ``known`` ``[U, rows, dim]``: if there is one, the embedding an all-knowing reader would give.
    ``prompt_features`` ``[Q, F]`` (None: ``text``'s states) and ``picture_features`` ``[M, F]``, of
    unit length, are what RPO measures nearness in; ``weight`` ``[P]`` (None: 1 each) are factors on
    DPO's β (``weigh``). ``judged`` ``[V, 4]``: verdicts on single pictures, each a user, a prompt,
    a picture, and 1 if it was liked.
    """

    user: Index
    prompt: Index
    preferred: Index
    rejected: Index
    read_in: Index
    latents: NDArray[np.floating]
    text: dict[str, NDArray[np.floating]]
    readings: Array
    reading_user: Index
    reading_pairs: Index
    read_for: Index | None = None
    known: Array | None = None
    prompt_features: Array | None = None
    picture_features: Array | None = None
    weight: Array | None = None
    judged: Index | None = None
    about: dict[str, Any] = field(default_factory=dict)
    _readings_of: dict[int, Index] = field(init=False, compare=False, repr=False)
    _pairs_of: dict[int, Index] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_readings_of", _by_user(self.reading_user))
        object.__setattr__(self, "_pairs_of", _by_user(self.user))

    def __len__(self) -> int:
        return len(self.user)

    @property
    def users(self) -> int:
        return len(np.unique(self.user))

    @property
    def embedding_shape(self) -> tuple[int, int]:
        return self.readings.shape[1], self.readings.shape[2]

    def showing(self, user: int, picture: int) -> Index:
        """The user's pairs that show the picture."""
        own = self._pairs_of.get(user, _NONE)
        return own[(self.preferred[own] == picture) | (self.rejected[own] == picture)]

    def readings_for_pair(self, pair: int) -> Index:
        """Its user's readings that saw neither of its pictures, in whatever pair."""
        user = int(self.user[pair])
        pictures = int(self.preferred[pair]), int(self.rejected[pair])
        shown = np.union1d(*(self.showing(user, picture) for picture in pictures))
        return self._unread(user, shown, np.array([pair]))

    def readings_for_picture(self, user: int, picture: int) -> Index:
        """The user's readings that never saw the picture: one that did tells whether they like it.
        Of a picture in none of their pairs all readings."""
        shown = self.showing(user, picture)
        return self._unread(user, shown, shown)

    def _unread(self, user: int, shown: Index, own: Index) -> Index:
        """Readings of none of the pairs ``shown``, or else those that are for one of ``own``."""
        found = self._readings_of.get(user, _NONE)
        found = found[(found[:, None] != self.read_in[shown]).all(1)]
        if not len(found) and self.read_for is not None:
            found = self.read_for[own]
        return found[found >= 0]

    def embedding(self, readings: Index, rng: np.random.Generator, *, pooled: int = 1) -> Array:
        """A user as ``pooled`` of these ``readings`` see them, ``[rows, dim]``: mean by pairs."""
        chosen = rng.choice(readings, min(pooled, len(readings)), replace=False)
        weight = self.reading_pairs[chosen].astype(np.float32)
        mean = np.tensordot(weight / weight.sum(), self.readings[chosen], 1)
        return np.asarray(mean, np.float32)

    def latent(self, pictures: Index) -> Tensor:
        """``[B, C, h, w]`` float32."""
        return torch.from_numpy(np.asarray(self.latents[pictures], np.float32))

    def states(self, prompts: Index) -> dict[str, Tensor]:
        """Text of prompts; -1 is the empty prompt."""
        return {k: torch.from_numpy(np.asarray(v[prompts])) for k, v in self.text.items()}

    def distance(self, pairs: Index) -> Tensor:
        """RPO's ``D_ij = 1 - cos``, winner i with its prompt to loser j with its own: [B, B]."""
        if self.picture_features is None:
            raise ValueError("objective: rpo needs a choice set prepared with features")
        prompts = self.prompt[pairs]
        if self.prompt_features is not None:
            prompt = self.prompt_features[prompts]
        else:
            prompt = unit(self.text["states"][prompts].reshape(len(prompts), -1))
        w = self.picture_features[self.preferred[pairs]]
        x = self.picture_features[self.rejected[pairs]]
        return torch.from_numpy(pair_distance(prompt, w, x))

    def save(self, directory: Path) -> None:
        """Write the arrays, and leave none of a set that was here before."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            if (value := getattr(self, name)) is not None:
                np.save(directory / f"{name}.npy", value)
            else:
                (directory / f"{name}.npy").unlink(missing_ok=True)
        for path in directory.glob("text-*.npy"):
            if path.stem.removeprefix("text-") not in self.text:
                path.unlink()
        for key, value in self.text.items():
            np.save(directory / f"text-{key}.npy", value)
        (directory / ABOUT).write_text(json.dumps(self.about, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> ChoiceSet:
        """A saved set; the large arrays stay on disk. FileNotFoundError if there is none."""
        found: dict[str, Any] = {"about": json.loads((directory / ABOUT).read_text())}
        for name in _ARRAYS:
            if (path := directory / f"{name}.npy").exists():
                found[name] = np.load(path, mmap_mode="r" if name == "latents" else None)
        found["text"] = {
            path.stem.removeprefix("text-"): np.load(path, mmap_mode="r")
            for path in sorted(directory.glob("text-*.npy"))
        }
        return cls(**found)


def _by_user(users: Index) -> dict[int, Index]:
    """The places at which each user stands, in their order."""
    order = np.argsort(users, kind="stable")
    found, starts = np.unique(users[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True)) if len(found) else {}


def is_prepared(directory: Path) -> bool:
    """Whether a whole set was saved here."""
    return (directory / ABOUT).exists()


_ARRAYS = (
    "user", "prompt", "preferred", "rejected", "read_in", "latents", "read_for", "readings",
    "reading_user", "reading_pairs", "known", "prompt_features", "picture_features", "weight",
    "judged",
)  # fmt: skip
