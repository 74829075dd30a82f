"""What goes with a version of a taste: its embeddings, the codes that stand for it, and what is
being drawn with those."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, delete, select, update
from sqlalchemy.orm import Session

from ppd_serve.errors import NotFound
from ppd_serve.storage.base import next_sequence
from ppd_serve.storage.database import batches
from ppd_serve.storage.records import (
    EmbeddingRecord,
    GenerationCodeRecord,
    GenerationRecord,
    PastEmbeddingRecord,
    RemovalRecord,
    TasteCodeRecord,
    UserRecord,
)
from ppd_serve.storage.values import UNFINISHED

WITHDRAWN = "This taste code was withdrawn"


def drop_versions(session: Session, user: UserRecord, since: int, now: float) -> None:
    """Remove the user's versions from ``since`` on, in every space, and tell the indexes. Hold the
    user's lock."""
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
    drop_codes(session, codes_of(user) & (TasteCodeRecord.version >= since), now)


def codes_of(user: UserRecord) -> ColumnElement[bool]:
    """Which taste codes are this user's."""
    return (TasteCodeRecord.project == user.project) & (TasteCodeRecord.user_id == user.user_id)


def drawn_with(which: ColumnElement[bool]) -> Select[str]:
    """The ids of generations that are being drawn with a taste code."""
    return select(GenerationCodeRecord.generation_id).join(TasteCodeRecord).where(which)


def drop_codes(session: Session, which: ColumnElement[bool], now: float) -> int:
    """Remove taste codes; what is being drawn with one, in whatever process, has ended then."""
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
    return len(
        session.scalars(delete(TasteCodeRecord).where(which).returning(TasteCodeRecord.code)).all()
    )
