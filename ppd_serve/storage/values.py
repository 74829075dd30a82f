"""The plain values that go in and out of the store; none of them holds a database session.

Times are seconds since the epoch (UTC). Ids are strings; all but ``user_id`` and idempotency keys
are random and made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ppd_serve.preferences.pairs import Pair

DEFAULT_PROJECT = "default"

ImageKind = Literal["upload", "generated", "pair"]
Choice = Literal["left", "right", "neither"]
Place = tuple[float, str]  # of a record among a user's, oldest first: when it was made, and its id
BEGINNING: Place = (0.0, "")
GenerationState = Literal["queued", "running", "done", "failed", "cancelled"]
UNFINISHED: tuple[GenerationState, ...] = ("queued", "running")


def index_id(project: str, incarnation: str) -> str:
    """The id under which the user index knows a user.

    It names the incarnation, not the user: what is left in an index after a deletion can never be
    read as the vector of whoever takes the name next. Search within one project with
    ``prefix=index_id(project, "")``.
    """
    return f"{project}/{incarnation}"


@dataclass(frozen=True)
class User:
    """``version`` counts the committed changes of the user's pairs; 0 at creation."""

    project: str
    user_id: str
    incarnation: str
    version: int
    pairs_total: int
    created: float


@dataclass(frozen=True)
class UserKey:
    """What must be known to trust a cached embedding: it is current when
    ``embedding_version == version`` (``None``: none stored in that space)."""

    incarnation: str
    version: int
    pairs_total: int
    embedding_version: int | None


@dataclass(frozen=True)
class DeletedUser:
    """What went away with a user: forget it in the index, cancel these generations."""

    incarnation: str
    generation_ids: list[str]


@dataclass(frozen=True)
class NewImage:
    """A checked, encoded picture (PNG, JPEG or WebP bytes)."""

    data: bytes
    media_type: str
    width: int
    height: int


@dataclass(frozen=True)
class Image:
    """A stored picture without its bytes. ``expires`` counts only while nothing uses it."""

    image_id: str
    project: str
    kind: ImageKind
    media_type: str
    width: int
    height: int
    size: int
    created: float
    expires: float


@dataclass(frozen=True)
class NewPair:
    """A choice to be stored. Each side is a new picture or the id of one already stored."""

    prompt: str
    preferred: NewImage | str
    rejected: NewImage | str


@dataclass(frozen=True)
class StoredPair:
    pair_id: str
    prompt: str
    preferred_image_id: str
    rejected_image_id: str
    created: float


@dataclass(frozen=True)
class PairPage:
    """Oldest first; ``next`` is the cursor of the next page, ``None`` on the last."""

    pairs: list[StoredPair]
    next: str | None


@dataclass(frozen=True)
class LoadedPairs:
    """All pairs of a user in arrival order, with the version they add up to."""

    incarnation: str
    version: int
    pairs: list[Pair]


@dataclass(frozen=True)
class Idempotency:
    """An ``Idempotency-Key`` as it came with a call. ``route`` is method and path."""

    route: str
    key: str
    body_hash: str


@dataclass(frozen=True)
class AddedPairs:
    """Committed pairs.

    ``replayed`` is true when this very call had been committed before (same idempotency key);
    nothing was written then. If that earlier call also finished, ``answer`` is the answer it
    gave; if it died in between, ``answer`` is ``None``: build the answer as for a new call and
    finish it.
    """

    user_id: str
    incarnation: str
    version: int
    pairs_total: int
    pair_ids: list[str]
    replayed: bool = False
    answer: dict[str, Any] | None = None


@dataclass(frozen=True)
class Embedding:
    """A stored preference embedding: ``values`` float32 ``[rows, dim]``, read-only. ``bits``: how
    many the answer to the next question is expected to tell."""

    project: str
    user_id: str
    incarnation: str
    version: int
    space: str
    values: np.ndarray
    pairs_used: int
    profile: str | None
    bits: float | None


@dataclass(frozen=True)
class EmbeddingVersion:
    version: int
    pairs_used: int


@dataclass(frozen=True)
class TasteCode:
    """``code`` stands for ``version`` of the taste of this incarnation of a user."""

    code: str
    user_id: str
    incarnation: str
    version: int
    created: float


@dataclass(frozen=True)
class Question:
    """Two stored pictures of one prompt; ``choice`` is None until somebody has answered."""

    question_id: str
    prompt: str
    left_image_id: str
    right_image_id: str
    bits: float
    choice: Choice | None
    created: float

    @property
    def place(self) -> Place:
        return self.created, self.question_id


@dataclass(frozen=True)
class Feedback:
    feedback_id: str
    image_id: str
    prompt: str
    liked: bool
    created: float

    @property
    def place(self) -> Place:
        return self.created, self.feedback_id


@dataclass(frozen=True)
class Change:
    """One step of the change sequence of an embedding space: ``embedding`` is the user's newest
    one, or ``None`` when the embedding of this incarnation is gone."""

    sequence: int
    project: str
    incarnation: str
    embedding: Embedding | None


@dataclass(frozen=True)
class Generation:
    """A record of drawn pictures. ``images``: id by position. ``error`` is ``{"type", "detail"}``
    when it failed; ``answer`` is whatever its maker wanted kept."""

    generation_id: str
    project: str
    state: GenerationState
    user_ids: list[str]
    images: dict[int, str]
    request: dict[str, Any]
    error: dict[str, Any] | None
    answer: dict[str, Any] | None
    created: float
    updated: float

    @property
    def image_ids(self) -> list[str]:
        return list(self.images.values())

    @property
    def place(self) -> Place:
        return self.created, self.generation_id


@dataclass(frozen=True)
class Swept:
    """What one sweep removed."""

    images: int
    answers: int
    orphans: int
    interrupted: int
