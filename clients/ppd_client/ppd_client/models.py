"""The server's answers, typed. Unknown fields are ignored: the interface may grow."""

from __future__ import annotations

import base64
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ImageRef(Answer):
    """A picture the server holds; accepted wherever a picture is."""

    image_id: str


class EmbeddingState(Answer):
    """How far the encoder has come with a user's pairs. ``pending``: newer pairs are being read."""

    space: str
    version: int
    pairs_used: int
    status: Literal["current", "pending"]


class User(Answer):
    user_id: str
    pairs_total: int
    embedding: EmbeddingState | None = None
    profile: str | None = None
    ask_more: bool = False


class PreferencesAdded(Answer):
    """The pairs are committed. ``profile``: the taste in words, once the encoder has read them."""

    user_id: str
    pair_ids: list[str]
    pairs_total: int
    embedding: EmbeddingState
    profile: str | None = None


class StoredPair(Answer):
    """``created``: seconds since 1970."""

    pair_id: str
    prompt: str
    preferred: ImageRef
    rejected: ImageRef
    created: float | None = None


class PreferencesPage(Answer):
    """Oldest first; ``next`` is the cursor of the next page, None on the last."""

    pairs: list[StoredPair]
    next: str | None = None


class Embedding(Answer):
    """``values``: ``shape[0]`` rows of ``shape[1]`` floats. Spaces must be equal to compare two."""

    space: str
    version: int
    shape: tuple[int, int]
    values: list[list[float]]


class EmbeddingVersion(Answer):
    """A version that can be drawn with; ``pairs_used``: how many choices it has read."""

    version: int
    pairs_used: int


class EmbeddingsPage(Answer):
    """Newest first; ``next`` is the cursor of the next page, None on the last."""

    embeddings: list[EmbeddingVersion]
    next: str | None = None


class LinkedImage(ImageRef):
    """``url`` needs no key, for an hour."""

    url: str


class Question(Answer):
    """Two pictures of one prompt: which does the user prefer? ``answer`` tells the server."""

    question_id: str
    prompt: str
    left: LinkedImage
    right: LinkedImage


class Feedback(Answer):
    feedback_id: str
    image_id: str
    liked: bool


class TasteCode(Answer):
    """Stands for one version of a user's taste: ``UserWeight(taste_code=code.code)``.
    ``created``: seconds since 1970."""

    code: str
    version: int
    created: float | None = None


class TasteCodes(Answer):
    taste_codes: list[TasteCode]


class Neighbor(Answer):
    """``similarity``: cosine of the two users' search keys, −1 … 1."""

    user_id: str
    similarity: float


class Neighbors(Answer):
    neighbors: list[Neighbor]


class UserWeight(Answer):
    """One user's share of a picture, −4 … 4; weights need not sum to one. Give ``user_id``, and
    ``version`` for a past one; or ``taste_code``."""

    user_id: str | None = None
    taste_code: str | None = None
    weight: float = 1.0
    version: int | None = None


class UserUsed(Answer):
    """What a picture was made with. ``personalized`` False: no embedding yet, base picture.
    ``taste_code``: the end of the code, for who was asked for by one."""

    user_id: str | None = None
    taste_code: str | None = None
    weight: float
    personalized: bool
    version: int | None = None
    pairs_used: int = 0


class GeneratedImage(ImageRef):
    """One picture; the same seed and settings draw it again."""

    seed: int
    b64_json: str | None = Field(default=None, repr=False)
    url: str | None = None

    @property
    def data(self) -> bytes:
        """Encoded bytes. Raises ValueError if the picture was asked for as a url."""
        if self.b64_json is None:
            raise ValueError("this picture came as a url; fetch it with get_image(image_id)")
        return base64.b64decode(self.b64_json)


class Generation(Answer):
    """``created``: seconds since 1970; ``timing``: seconds by stage."""

    id: str
    created: int
    release: str
    images: list[GeneratedImage]
    users: list[UserUsed] = []
    timing: dict[str, float] = {}


class Problem(Answer):
    """Why a drawing ended without pictures; ``type`` is the stable word behind the last colon."""

    type: str
    status: int
    detail: str
    field: str | None = None


class GenerationRecord(Answer):
    """How far a drawing is. ``images`` are those that are finished, as urls."""

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    created: int
    release: str
    images: list[GeneratedImage] = []
    users: list[UserUsed] = []
    timing: dict[str, float] = {}
    error: Problem | None = None

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")


class Release(Answer):
    """``sizes``: (width, height) in pixels, the default first."""

    name: str
    version: str
    backbone: str | None = None
    encoder: str | None = None
    embedding_space: str | None = None
    sizes: list[tuple[int, int]] = []
    samplers: list[str] = []
    limits: dict[str, Any] = {}
    example_prompts: list[str] = []
    metrics: dict[str, Any] = {}


class Releases(Answer):
    active: Release
    known: list[str] = []


class Readiness(Answer):
    """``detail`` names what is missing while ``ready`` is False."""

    ready: bool
    detail: str = ""
