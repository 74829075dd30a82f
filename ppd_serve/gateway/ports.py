"""The parts that the gateway talks to, as it sees them.

Every call may raise ``ActorUnavailable``: the part has died, or is being started again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ppd_serve.api.events import Format, Preview, Queued, Step
from ppd_serve.meters import Beat
from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.questions import Question as Question

Users = Sequence[tuple[np.ndarray, float]]  # (embedding float32 [rows, dim], weight) of each


@dataclass(frozen=True)
class DrawRequest:
    """Pictures of one prompt, one per seed. None: the release's default.

    users: those who have a say in every picture. own_users: of each picture, those who also have a
    say in it (None: nobody). watched: whether steps are told. previews: how many are wanted of each
    picture, at most.
    """

    prompt: str
    negative_prompt: str
    seeds: Sequence[int]
    width: int
    height: int
    steps: int | None
    guidance_scale: float | None
    sampler: str | None
    preference_scale: float | None
    users: Users
    own_users: Sequence[Users] | None = None
    watched: bool = False
    previews: int = 0
    guidance_interval: tuple[float, float] | None = None

    def users_of(self, image: int) -> Users:
        """Who has a say in picture number ``image``."""
        return self.users if self.own_users is None else [*self.users, *self.own_users[image]]


@dataclass(frozen=True)
class Finished:
    """Picture number ``image`` as PNG."""

    image: int
    png: bytes


DrawEvent = Queued | Step | Preview | Finished


@dataclass(frozen=True)
class IndexRow:
    """A step of the change sequence: the newest embedding under an id, or none any more."""

    sequence: int
    id: str
    version: int
    values: np.ndarray | None


@dataclass(frozen=True)
class Reading:
    """What pairs tell of a taste: the embedding, float32 ``[rows, dim]``, the profile in words, and
    how many bits the answer to the next question is expected to tell (None: that isn't known)."""

    values: np.ndarray
    profile: str | None
    bits: float | None


class EncoderPort(Protocol):
    async def embed(self, pairs: Sequence[Pair]) -> Reading:
        """Of at least one pair."""

    async def ask(self, pairs: Sequence[Pair], asked: int) -> Question:
        """What to ask somebody who has made these choices, or none yet, and was asked so many
        questions since, which taught nothing. Raises ``Unsupported`` when the release asks none."""

    async def beat(self) -> Beat:
        """Returns when the encoder is there and warm."""


class DiffuserPort(Protocol):
    def draw(self, request: DrawRequest) -> AsyncGenerator[DrawEvent, None]:
        """``Queued`` as soon as the engine has taken it all, then what happens, until every picture
        is finished, in whatever order. Closing it, or being cancelled in it, frees the rows at the
        next step. Raises ``InvalidInput`` for what the backbone can't do, ``QueueFull``."""

    async def encode(self, png: bytes, format: Format) -> bytes:
        """A picture of ours in another format, with what was written inside it."""

    async def beat(self) -> Beat:
        """Returns when the diffuser is there and warm."""

    async def samplers(self) -> list[str]:
        """The samplers of the backbone."""


class IndexPort(Protocol):
    async def apply(self, source: str, after: int, rows: Sequence[IndexRow]) -> int:
        """Take the steps that follow ``after`` in the database ``source``, if that is where the
        index stands (−1: start over from nothing, then take them); where it stands now. An index
        of another database starts over first."""

    async def get(self, id: str) -> tuple[int, np.ndarray] | None:
        """Version and embedding."""

    async def search(self, key: np.ndarray, k: int, prefix: str) -> list[tuple[str, float]]:
        """Nearest ids and cosines, of those that start with ``prefix``."""

    async def beat(self) -> Beat:
        """Returns when the index is there."""
