"""The tables, as SQLAlchemy 2 declarative models. Migrations make them; a test compares the two.

Every table that holds what a client said has ``project``. Times are seconds since the epoch. Rows
that belong to a user go with the user's row (``ON DELETE CASCADE``); pictures don't, because two
users may use the same one. The tables of the taste loop are in ``loop_records``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Record(DeclarativeBase):
    metadata = MetaData(
        naming_convention={  # so that a later migration can name what it drops, on any database
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it once, from the class)
        int: BigInteger,
        float: Double,
        str: String,
        dict[str, Any]: JSON(none_as_null=True),
    }


def of_user() -> ForeignKeyConstraint:
    """Goes with the user's row."""
    return ForeignKeyConstraint(
        ["project", "user_id"], ["users.project", "users.user_id"], ondelete="CASCADE"
    )


class UserRecord(Record):
    """``pairs_added`` counts all pairs there ever were; it numbers the next one. Whatever was read
    before ``least_version`` may hold a pair that has been deleted."""

    __tablename__ = "users"

    project: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str] = mapped_column(unique=True)
    version: Mapped[int]
    pairs_total: Mapped[int]
    pairs_added: Mapped[int]
    least_version: Mapped[int]
    created: Mapped[float]


class BlobRecord(Record):
    """One content in the blob store. The row is also the lock that writers of this content and
    its collector share; ``doomed`` marks it for collection."""

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(primary_key=True)
    doomed: Mapped[bool] = mapped_column(index=True)


class GenerationRecord(Record):
    """``answer`` is what can be told of it so far, without its pictures."""

    __tablename__ = "generations"

    generation_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    owner: Mapped[str]
    request: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None]
    answer: Mapped[dict[str, Any] | None]
    created: Mapped[float]
    updated: Mapped[float]


class GenerationUserRecord(Record):
    __tablename__ = "generation_users"
    __table_args__ = (Index(None, "project", "user_id"),)

    generation_id: Mapped[str] = mapped_column(
        ForeignKey("generations.generation_id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]


class ImageRecord(Record):
    """A picture under its random id; many may share one blob."""

    __tablename__ = "images"

    image_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    kind: Mapped[str]
    media_type: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    size: Mapped[int]
    created: Mapped[float]
    expires: Mapped[float] = mapped_column(index=True)
    generation_id: Mapped[str | None] = mapped_column(
        ForeignKey("generations.generation_id", ondelete="SET NULL"), index=True
    )
    position: Mapped[int]


class PairRecord(Record):
    """``version``: the user's first with this pair in it; 0 where that is not known."""

    __tablename__ = "pairs"
    __table_args__ = (of_user(), Index(None, "project", "user_id", "position", unique=True))

    pair_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    user_id: Mapped[str]
    position: Mapped[int]
    version: Mapped[int]
    prompt: Mapped[str] = mapped_column(Text)
    preferred_image_id: Mapped[str] = mapped_column(ForeignKey("images.image_id"), index=True)
    rejected_image_id: Mapped[str] = mapped_column(ForeignKey("images.image_id"), index=True)
    created: Mapped[float]


class Reading:
    """What was read of a user's pairs; ``data`` is little-endian float32, row by row. ``bits``:
    how many the answer to the next question is expected to tell."""

    project: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True)
    space: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str]
    row_count: Mapped[int]
    dim: Mapped[int]
    data: Mapped[bytes] = mapped_column(LargeBinary)
    pairs_used: Mapped[int]
    profile: Mapped[str | None] = mapped_column(Text)
    bits: Mapped[float | None]


class EmbeddingRecord(Reading, Record):
    """The newest embedding of a user in a space."""

    __tablename__ = "embeddings"
    __table_args__ = (of_user(), Index(None, "space", "sequence", unique=True))

    version: Mapped[int]
    sequence: Mapped[int]


class RemovalRecord(Record):
    """Embeddings of an incarnation went away. It doesn't say whose they were."""

    __tablename__ = "removals"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project: Mapped[str]
    incarnation: Mapped[str]


class SequenceRecord(Record):
    """One row: the number of the last change. Its row lock makes numbers commit in order, which a
    database's own sequence doesn't promise; a reader could then skip a late one."""

    __tablename__ = "change_sequence"

    one: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class IdentityRecord(Record):
    """One row: which database this is. A sequence number of another one says nothing here."""

    __tablename__ = "identity"

    database_id: Mapped[str] = mapped_column(primary_key=True)


class AnswerRecord(Record):
    """An idempotency key. ``owner`` is set while a process works on it; ``added`` holds the pairs
    that were committed with it; ``answer`` what was answered."""

    __tablename__ = "answers"

    project: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    owner: Mapped[str | None] = mapped_column(index=True)
    added: Mapped[dict[str, Any] | None]
    answer: Mapped[dict[str, Any] | None]
    created: Mapped[float] = mapped_column(index=True)


class AnswerUserRecord(Record):
    __tablename__ = "answer_users"
    __table_args__ = (
        ForeignKeyConstraint(
            ["project", "route", "key"],
            ["answers.project", "answers.route", "answers.key"],
            ondelete="CASCADE",
        ),
        Index(None, "project", "user_id"),
    )

    project: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True)


class KeyRecord(Record):
    """An API key. ``digest`` is all that is kept of the key itself; ``scopes`` are words with
    spaces between; ``revoked`` is when."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    project: Mapped[str]
    scopes: Mapped[str]
    name: Mapped[str]
    rate_per_minute: Mapped[int | None]
    concurrency: Mapped[int | None]
    created: Mapped[float]
    expires: Mapped[float | None]
    revoked: Mapped[float | None]
