"""Preference embeddings, and the sequence of their changes that indexes follow."""

from __future__ import annotations

import numpy as np
from sqlalchemy import select

from ppd_serve.errors import NotFound
from ppd_serve.storage.base import StoreBase, next_sequence
from ppd_serve.storage.records import (
    EmbeddingRecord,
    IdentityRecord,
    RemovalRecord,
    SequenceRecord,
)
from ppd_serve.storage.users import locked_user
from ppd_serve.storage.values import Change, Embedding


class EmbeddingStore(StoreBase):
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
        ``version`` is higher than the stored one of this space, and no pair was deleted since;
        false when it came too late."""
        rows, dim = values.shape
        with self._database.write() as session:
            try:
                user = locked_user(session, project, user_id)
            except NotFound:
                return False
            if user.incarnation != incarnation:
                return False
            if version < user.least_version:
                return False  # a pair was deleted while this was being encoded
            record = session.get(EmbeddingRecord, (project, user_id, space))
            if record is not None and record.version >= version:
                return False
            sequence = next_sequence(session)
            if record is None:
                record = EmbeddingRecord(project=project, user_id=user_id, space=space)
                session.add(record)
            record.incarnation = incarnation
            record.version = version
            record.row_count = rows
            record.dim = dim
            record.data = np.ascontiguousarray(values, dtype="<f4").tobytes()
            record.pairs_used = pairs_used
            record.profile = profile
            record.sequence = sequence
            return True

    def get_embedding(self, project: str, user_id: str, space: str) -> Embedding | None:
        """The newest stored embedding of a space; ``None`` too when there is no such user."""
        with self._database.read() as session:
            record = session.get(EmbeddingRecord, (project, user_id, space))
            return None if record is None else _embedding_value(record)

    def changes(self, space: str, after: int = 0, limit: int = 1000) -> list[Change]:
        """The next changes of a space over all projects, in commit order; empty when caught up.

        A user's embedding appears once, at its newest place. So ``after=0`` until empty rebuilds
        an index, and ``after=<sequence of the last change applied>`` brings one up to date.
        """
        with self._database.read() as session:
            stored = session.scalars(
                select(EmbeddingRecord)
                .where(EmbeddingRecord.space == space, EmbeddingRecord.sequence > after)
                .order_by(EmbeddingRecord.sequence)
                .limit(limit)
            ).all()
            removed = session.scalars(
                select(RemovalRecord)
                .where(RemovalRecord.sequence > after)
                .order_by(RemovalRecord.sequence)
                .limit(limit)
            ).all()
        changes = [
            Change(r.sequence, r.project, r.incarnation, _embedding_value(r)) for r in stored
        ] + [Change(r.sequence, r.project, r.incarnation, None) for r in removed]
        return sorted(changes, key=lambda change: change.sequence)[:limit]

    def database_id(self) -> str:
        """A random name that this database has had since it was made."""
        with self._database.read() as session:
            return session.scalars(select(IdentityRecord.database_id)).one()

    def sequence(self) -> int:
        """The number of the last committed change of any space."""
        with self._database.read() as session:
            return session.scalars(select(SequenceRecord.value)).one()


def _embedding_value(record: EmbeddingRecord) -> Embedding:
    return Embedding(
        project=record.project,
        user_id=record.user_id,
        incarnation=record.incarnation,
        version=record.version,
        space=record.space,
        values=np.frombuffer(record.data, dtype="<f4").reshape(record.row_count, record.dim),
        pairs_used=record.pairs_used,
        profile=record.profile,
    )
