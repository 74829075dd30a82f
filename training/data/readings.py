"""Who is in which split, and how many pairs of a person the encoder reads together."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

# PPD (arXiv 2501.06655) reads 4 pairs at once, without overlap, and 20 of one person at most.
READ_AT_ONCE = 4
MOST_READ = 20

Split = Literal["train", "dev", "test"]
SPLIT_SHARES: dict[Split, float] = {"train": 0.9, "dev": 0.05, "test": 0.05}


def split_of(user: str) -> Split:
    """The split that a person is always in, whatever the file, the machine or the year."""
    digest = hashlib.sha256(b"split of " + user.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split in get_args(Split)[:-1]:
        place -= SPLIT_SHARES[split]
        if place < 0:
            return split
    return get_args(Split)[-1]
