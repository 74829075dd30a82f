"""Whose pairs wait for a reading."""

from __future__ import annotations

from sqlalchemy import and_, or_, select, tuple_

from ppd_serve.storage.base import StoreBase
from ppd_serve.storage.records import EmbeddingRecord, UserRecord
from ppd_serve.storage.users import user_value
from ppd_serve.storage.values import User


class UnreadStore(StoreBase):
    def unread_users(self, space: str, after: tuple[str, str], limit: int) -> list[User]:
        """Users of all projects with pairs that no embedding of ``space`` has taken in, by project
        and id; those that follow ``after`` (project, id)."""
        with self._database.read() as session:
            records = session.scalars(
                select(UserRecord)
                .outerjoin(
                    EmbeddingRecord,
                    and_(
                        EmbeddingRecord.project == UserRecord.project,
                        EmbeddingRecord.user_id == UserRecord.user_id,
                        EmbeddingRecord.space == space,
                    ),
                )
                .where(
                    UserRecord.pairs_total > 0,
                    or_(
                        EmbeddingRecord.version.is_(None),
                        EmbeddingRecord.version < UserRecord.version,
                    ),
                    tuple_(UserRecord.project, UserRecord.user_id) > after,
                )
                .order_by(UserRecord.project, UserRecord.user_id)
                .limit(limit)
            ).all()
        return [user_value(record) for record in records]
