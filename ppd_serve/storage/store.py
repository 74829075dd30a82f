"""What must survive: users, pairs, embeddings, pictures, answers and generation records.

The database is the truth; blobs hold the pictures' bytes, by content; every cache and index is
rebuilt from here. Each method is one transaction, blocks, and may be called from any thread.
Everything is scoped by ``project``: another project's id is as unknown as one that never was.

Errors: ``NotFound``, ``Conflict``, ``InvalidInput`` where a method says so, and
``StorageUnavailable`` from every method while the database or the blob store is away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ppd_serve.storage.values import (
    DEFAULT_PROJECT,
    AddedPairs,
    Change,
    DeletedUser,
    Embedding,
    Generation,
    GenerationState,
    Idempotency,
    Image,
    ImageKind,
    LoadedPairs,
    NewImage,
    NewPair,
    PairPage,
    StoredPair,
    Swept,
    User,
    UserKey,
    index_id,
)

__all__ = [
    "DEFAULT_PROJECT",
    "AddedPairs",
    "Change",
    "DeletedUser",
    "Embedding",
    "Generation",
    "GenerationState",
    "Idempotency",
    "Image",
    "ImageKind",
    "LoadedPairs",
    "NewImage",
    "NewPair",
    "PairPage",
    "Store",
    "StoredPair",
    "Swept",
    "User",
    "UserKey",
    "index_id",
]


class Store:
    """Open it with ``Store.open``."""

    @classmethod
    def open(
        cls, database_url: str, blob_url: str, *, clock: Callable[[], float] = time.time
    ) -> Store:
        """Connect, migrate to the newest schema, and clean up after dead processes.

        ``database_url``: ``sqlite:////absolute/path.db`` or ``postgresql://…``; ``blob_url``: a
        directory or any fsspec URL. Generation records that a dead process left unfinished become
        ``failed`` with error type ``interrupted``; its running idempotency keys are released.
        What another live process is doing is left alone.
        """
        raise NotImplementedError

    def ping(self) -> None:
        """Return if the database answers, else raise ``StorageUnavailable``."""
        raise NotImplementedError

    def close(self) -> None:
        """Give connections back. The store can't be used afterwards."""
        raise NotImplementedError

    def sweep(self) -> Swept:
        """Remove what has expired: unused pictures, answers older than 24 h, blobs of failed
        commits, and what other processes left when they died. Call it every hour or so."""
        raise NotImplementedError

    # users

    def put_user(self, project: str, user_id: str) -> tuple[User, bool]:
        """Create the user unless it exists; true when it was created now."""
        raise NotImplementedError

    def get_user(self, project: str, user_id: str) -> User:
        """Raises ``NotFound``."""
        raise NotImplementedError

    def delete_user(self, project: str, user_id: str) -> DeletedUser | None:
        """Forget the user: pairs, embeddings of every space, stored answers, generation records,
        the pictures of these, and all blobs that nobody else uses. ``None`` when there was no such
        user. A picture that another user's pair also uses stays."""
        raise NotImplementedError

    def user_keys(self, project: str, user_ids: Iterable[str], space: str) -> dict[str, UserKey]:
        """Incarnation and versions of many users in one query; unknown ids are left out."""
        raise NotImplementedError

    def user_ids(self, project: str, incarnations: Iterable[str]) -> dict[str, str]:
        """Incarnation → user id of those that still live, to name what the index found."""
        raise NotImplementedError

    # pairs

    def add_pairs(
        self,
        project: str,
        user_id: str,
        pairs: Sequence[NewPair],
        idempotency: Idempotency | None = None,
    ) -> AddedPairs:
        """Commit all pairs or none, creating the user if need be; the version grows by one.

        The idempotency record commits together with the pairs: whatever dies when, a retry with
        the same key never adds them twice. After a new call (or a replay without an answer) end
        with ``finish_idempotent`` or ``release_idempotent``.

        Raises ``NotFound`` (field ``pairs.N.preferred.image_id``) for an unknown picture,
        ``Conflict`` while the same key is running, ``InvalidInput`` (field ``Idempotency-Key``)
        when the key came with another body before.
        """
        raise NotImplementedError

    def list_pairs(
        self, project: str, user_id: str, cursor: str | None = None, limit: int = 50
    ) -> PairPage:
        """Oldest first. Raises ``NotFound`` for the user, ``InvalidInput`` for a cursor that no
        page gave. Cursors match ``[A-Za-z0-9_-]+`` and survive deletions."""
        raise NotImplementedError

    def load_pairs(self, project: str, user_id: str) -> LoadedPairs:
        """All pairs with their bytes, in arrival order, and the version they belong to: one
        consistent view. Raises ``NotFound``."""
        raise NotImplementedError

    def delete_pair(self, project: str, user_id: str, pair_id: str) -> User | None:
        """Delete one pair; the user with its new version, or ``None`` if there was no such pair.
        With the last pair the embeddings go as well (they are nobody's taste any more)."""
        raise NotImplementedError

    # embeddings

    def put_embedding(
        self,
        project: str,
        user_id: str,
        incarnation: str,
        version: int,
        space: str,
        values: np.ndarray,
        pairs_used: int,
        profile: str | None,
    ) -> bool:
        """Store ``values`` (float32 ``[rows, dim]``) if the incarnation still lives and
        ``version`` is higher than the stored one of this space; false when it came too late."""
        raise NotImplementedError

    def get_embedding(self, project: str, user_id: str, space: str) -> Embedding | None:
        """The newest stored embedding of a space; ``None`` too when there is no such user."""
        raise NotImplementedError

    def changes(self, space: str, after: int = 0, limit: int = 1000) -> list[Change]:
        """The next changes of a space over all projects, in commit order; empty when caught up.

        A user's embedding appears once, at its newest place. So ``after=0`` until empty rebuilds
        an index, and ``after=<sequence of the last change applied>`` brings one up to date.
        """
        raise NotImplementedError

    def sequence(self) -> int:
        """The number of the last committed change of any space."""
        raise NotImplementedError

    # pictures

    def add_image(
        self,
        project: str,
        image: NewImage,
        kind: ImageKind = "upload",
        generation_id: str | None = None,
    ) -> Image:
        """Store a picture under a new random id. It expires when no pair uses it: uploads after
        24 h, generated ones after 7 d. With ``generation_id`` it belongs to that record, in the
        order of calls; raises ``NotFound`` when the record is gone (its user was deleted)."""
        raise NotImplementedError

    def get_image(self, project: str, image_id: str) -> Image:
        """Raises ``NotFound``, also for an expired one."""
        raise NotImplementedError

    def read_image(self, project: str, image_id: str) -> tuple[Image, bytes]:
        """The picture and its bytes. Raises ``NotFound``."""
        raise NotImplementedError

    def delete_image(self, project: str, image_id: str) -> bool:
        """False when there was none. Raises ``Conflict`` while a pair uses it."""
        raise NotImplementedError

    # idempotency

    def begin_idempotent(
        self, project: str, idempotency: Idempotency, user_ids: Iterable[str] = ()
    ) -> dict[str, Any] | None:
        """``None``: the key is new and now running, do the work, then finish or release it.
        A dict: the answer that this call gave before.

        ``user_ids`` are those the call is about; the record goes when one of them is deleted.
        Raises ``Conflict`` while the key is running, ``InvalidInput`` for another body.
        (Adding pairs has this built in: ``add_pairs(idempotency=…)``.)
        """
        raise NotImplementedError

    def finish_idempotent(
        self, project: str, idempotency: Idempotency, answer: Mapping[str, Any]
    ) -> bool:
        """Keep the JSON ``answer`` for 24 h from the key's first use. False when the record is
        gone (a user it was about has been deleted)."""
        raise NotImplementedError

    def release_idempotent(self, project: str, idempotency: Idempotency) -> None:
        """The work ended without an answer to keep: the next call with this key does it again
        (pairs that were committed stay committed, and aren't added again)."""
        raise NotImplementedError

    # generations

    def create_generation(
        self, project: str, request: Mapping[str, Any], users: Mapping[str, str] | None = None
    ) -> Generation:
        """A new ``queued`` record under a random id. ``users`` maps user id → incarnation; raises
        ``NotFound`` when one of these incarnations is gone."""
        raise NotImplementedError

    def set_generation(
        self,
        project: str,
        generation_id: str,
        state: GenerationState,
        error: Mapping[str, Any] | None = None,
    ) -> bool:
        """Move an unfinished record on. False when it is gone or has already ended."""
        raise NotImplementedError

    def get_generation(self, project: str, generation_id: str) -> Generation:
        """Raises ``NotFound``."""
        raise NotImplementedError
