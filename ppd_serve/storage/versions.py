"""What goes with a version of a taste: its embeddings, the codes that stand for it, and what is
being drawn with those."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, delete, select, update
from sqlalchemy.orm import Session

from ppd_serve.errors import NotFound
from ppd_serve.storage.answers import forget_answers
from ppd_serve.storage.base import next_sequence
from ppd_serve.storage.database import batches
from ppd_serve.storage.loop_records import (
    GenerationCodeRecord,
    PastEmbeddingRecord,
    TasteCodeRecord,
)
from ppd_serve.storage.records import EmbeddingRecord, GenerationRecord, RemovalRecord, UserRecord
from ppd_serve.storage.values import UNFINISHED

WITHDRAWN = "This taste code was withdrawn"


def drop_versions(session: Session, user: UserRecord, since: int, now: float) -> None:
    """Remove the user's versions from ``since`` on, in every space, and tell the indexes. Hold the
    user's lock."""
    # First, since the sequence is everybody's: who has taken it waits for nothing of others'.
    drop_codes(session, user, TasteCodeRecord.version >= since, now)
    mine = {"project": user.project, "user_id": user.user_id}
    gone = session.execute(
        delete(EmbeddingRecord)
        .filter_by(**mine)
        .where(EmbeddingRecord.version >= since)
        .returning(EmbeddingRecord.space)
    ).all()
    if gone:
        session.add(
            RemovalRecord(
                sequence=next_sequence(session), project=user.project, incarnation=user.incarnation
            )
        )
    session.execute(
        delete(PastEmbeddingRecord).filter_by(**mine).where(PastEmbeddingRecord.version >= since)
    )


def codes_of(user: UserRecord) -> ColumnElement[bool]:
    """Which taste codes are this user's."""
    return (TasteCodeRecord.project == user.project) & (TasteCodeRecord.user_id == user.user_id)


def drawn_with(which: ColumnElement[bool]) -> Select[str]:
    """The ids of generations that are being drawn with a taste code."""
    return select(GenerationCodeRecord.generation_id).join(TasteCodeRecord).where(which)


def lock_codes(session: Session, which: ColumnElement[bool]) -> None:
    """From here on nothing begins to be drawn with these taste codes, and what has begun is seen.
    Everybody locks users, then codes, then generations, then the sequence."""
    session.execute(
        select(TasteCodeRecord.code).where(which).order_by(TasteCodeRecord.code).with_for_update()
    )


def drop_codes(session: Session, user: UserRecord, which: ColumnElement[bool], now: float) -> int:
    """Remove taste codes of the user, and the stored answers that name them; what is being drawn
    with one, in whatever process, has ended then. Hold the user's lock."""
    which = codes_of(user) & which
    lock_codes(session, which)
    drawn = session.scalars(  # locked, so that no picture is added to them from here on
        select(GenerationRecord.generation_id)
        .where(
            GenerationRecord.state.in_(UNFINISHED),
            GenerationRecord.generation_id.in_(drawn_with(which)),
        )
        .order_by(GenerationRecord.generation_id)
        .with_for_update()
    ).all()
    for batch in batches(drawn):
        session.execute(
            update(GenerationRecord)
            .where(GenerationRecord.generation_id.in_(batch))
            .values(
                state="cancelled", error={"type": NotFound.type, "detail": WITHDRAWN}, updated=now
            )
        )
    gone = session.scalars(
        delete(TasteCodeRecord).where(which).returning(TasteCodeRecord.code)
    ).all()
    forget_answers(session, user, gone)
    return len(gone)
