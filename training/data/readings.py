"""Who is in which split, and which pairs of a person the encoder reads together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

# PPD (arXiv 2501.06655) reads 4 pairs at once, without overlap, and 20 of one person at most.
READ_AT_ONCE = 4
MOST_PAIRS = 20

Split = Literal["train", "dev", "test"]
SPLIT_SHARES: dict[Split, float] = {"train": 0.9, "dev": 0.05, "test": 0.05}

T = TypeVar("T")


def split_of(user: str) -> Split:
    """The split that a person is always in, whatever the file, the machine or the year."""
    digest = hashlib.sha256(b"split of " + user.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split in get_args(Split)[:-1]:
        place -= SPLIT_SHARES[split]
        if place < 0:
            return split
    return get_args(Split)[-1]


def chunks(choices: Sequence[T]) -> list[tuple[T, ...]]:
    """One person's choices in fours, in their order, without overlap.

    The last one to three are in no chunk: a reading is always of exactly four. They remain
    choices to train on.
    """
    whole = len(choices) - len(choices) % READ_AT_ONCE
    return [tuple(choices[k : k + READ_AT_ONCE]) for k in range(0, whole, READ_AT_ONCE)]


def readings(user: ArrayLike, most_pairs: int | None = None) -> NDArray[np.int64]:
    """What there is to read, as indices of pairs ``[R, 4]``; all four of one person.

    user ``[P]``: whose each pair is, in arrival order, people mixed as they come. most_pairs: only
    the first so many of one person. People with fewer than four pairs have no reading.
    """
    pairs_of: dict[int, list[int]] = {}
    for pair, who in enumerate(np.asarray(user).tolist()):
        pairs_of.setdefault(who, []).append(pair)
    fours = [four for pairs in pairs_of.values() for four in chunks(pairs[:most_pairs])]
    return np.array(fours, np.int64).reshape(-1, READ_AT_ONCE)
