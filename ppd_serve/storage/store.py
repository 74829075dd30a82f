"""What must survive: users, pairs, questions, feedback, embeddings, taste codes, pictures, answers
and generation records.

The database is the truth; blobs hold the pictures' bytes, by content; every cache and index is
rebuilt from here. Each method is one transaction, blocks, and may be called from any thread.
Everything is scoped by ``project``: another project's id is as unknown as one that never was.

Errors: ``NotFound``, ``Conflict``, ``InvalidInput`` where a method says so, and
``StorageUnavailable`` from every method while the database or the blob store is away.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import select, text

from ppd_serve.storage.blobs import Blobs
from ppd_serve.storage.database import Database, storage_errors
from ppd_serve.storage.embeddings import EmbeddingStore
from ppd_serve.storage.feedback import FeedbackStore
from ppd_serve.storage.generations import GenerationStore
from ppd_serve.storage.keys import KeyStore
from ppd_serve.storage.owners import open_owners
from ppd_serve.storage.questions import QuestionStore
from ppd_serve.storage.records import AnswerRecord, GenerationRecord
from ppd_serve.storage.taste_codes import TasteCodeStore
from ppd_serve.storage.unread import UnreadStore
from ppd_serve.storage.values import (
    DEFAULT_PROJECT,
    UNFINISHED,
    AddedPairs,
    Change,
    Choice,
    DeletedUser,
    Embedding,
    EmbeddingVersion,
    Feedback,
    Generation,
    GenerationState,
    Idempotency,
    Image,
    ImageKind,
    LoadedPairs,
    NewImage,
    NewPair,
    PairPage,
    Question,
    StoredPair,
    Swept,
    TasteCode,
    User,
    UserKey,
    index_id,
)

__all__ = [
    "DEFAULT_PROJECT",
    "AddedPairs",
    "Change",
    "Choice",
    "DeletedUser",
    "Embedding",
    "EmbeddingVersion",
    "Feedback",
    "Generation",
    "GenerationState",
    "Idempotency",
    "Image",
    "ImageKind",
    "LoadedPairs",
    "NewImage",
    "NewPair",
    "PairPage",
    "Question",
    "Store",
    "StoredPair",
    "Swept",
    "TasteCode",
    "User",
    "UserKey",
    "index_id",
]


class Store(
    QuestionStore,
    FeedbackStore,
    TasteCodeStore,
    EmbeddingStore,
    GenerationStore,
    UnreadStore,
    KeyStore,
):
    """Open it with ``Store.open``. Its methods are in the files named after what they keep: users,
    pairs, questions, feedback, embeddings, taste codes, images, answers (idempotency),
    generations, keys."""

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
        with storage_errors():
            database = Database(database_url)
            try:
                database.migrate()
                store = cls(database, Blobs(blob_url), open_owners(database), clock)
            except BaseException:
                database.close()
                raise
        try:
            store._clean_up_after_the_dead()
            store._drop_doomed_blobs()
        except BaseException:
            store.close()
            raise
        return store

    def ping(self) -> None:
        """Return if the database answers, else raise ``StorageUnavailable``. It also tells other
        processes that we live: call it every few seconds, or they take our work for a dead
        process's once a connection broke."""
        with self._database.read() as session:
            session.execute(text("SELECT 1"))
        with storage_errors():
            self._owners.hold()

    def close(self) -> None:
        """Give connections back. The store can't be used afterwards."""
        self._owners.close()
        self._database.close()

    def sweep(self) -> Swept:
        """Remove what has expired: unused pictures, answers older than 24 h, blobs of failed
        commits, and what other processes left when they died. Call it every hour or so."""
        interrupted = self._clean_up_after_the_dead()
        return Swept(
            interrupted=interrupted,
            images=self._drop_expired_images(),
            answers=self._drop_expired_answers(),
            orphans=self._drop_orphans(),
        )

    def _clean_up_after_the_dead(self) -> int:
        with storage_errors():
            self._owners.hold()
        with self._database.read() as session:
            unfinished = GenerationRecord.state.in_(UNFINISHED)
            owners = {
                *session.scalars(select(GenerationRecord.owner).where(unfinished).distinct()),
                *session.scalars(
                    select(AnswerRecord.owner).where(AnswerRecord.owner.is_not(None)).distinct()
                ),
            } - {self._owners.me}
        with storage_errors():
            dead = [owner for owner in owners if owner and self._owners.is_dead(owner)]
        if not dead:
            return 0
        with self._database.write() as session:
            interrupted = self._interrupt_of(session, dead)
            self._release_of(session, dead)  # after the generations, as everywhere
            return interrupted
