"""Preference embeddings, newest and past, and the sequence of their changes that indexes follow.

Past ones stay for as long as no pair that they have read is deleted. There is no other bound: each
came with new pairs, whose pictures take more room."""

from __future__ import annotations

import numpy as np
from sqlalchemy import select, true, union, union_all

from ppd_serve.errors import NotFound
from ppd_serve.storage.base import StoreBase, next_sequence
from ppd_serve.storage.loop_records import PastEmbeddingRecord
from ppd_serve.storage.records import (
    EmbeddingRecord,
    IdentityRecord,
    RemovalRecord,
    SequenceRecord,
    UserRecord,
)
from ppd_serve.storage.users import locked_user, unknown_user
from ppd_serve.storage.values import Change, Embedding, EmbeddingVersion

_COLUMNS = PastEmbeddingRecord.__table__.columns.keys()


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
        bits: float | None = None,
    ) -> bool:
        """Store ``values`` (float32 ``[rows, dim]``) if the incarnation still lives and
        ``version`` is higher than the stored one of this space, and no pair was deleted since;
        false when it came too late. The one before stays under its own version."""
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
            else:
                kept = {name: getattr(record, name) for name in _COLUMNS}
                session.add(PastEmbeddingRecord(**kept))
            record.incarnation = incarnation
            record.version = version
            record.row_count = rows
            record.dim = dim
            record.data = np.ascontiguousarray(values, dtype="<f4").tobytes()
            record.pairs_used = pairs_used
            record.profile = profile
            record.bits = bits
            record.sequence = sequence
            return True

    def get_embedding(
        self, project: str, user_id: str, space: str, version: int | None = None
    ) -> Embedding | None:
        """The embedding of a version in a space, or the newest; ``None`` when it was never stored
        or is gone, and when there is no such user."""
        with self._database.read() as session:
            name = {"project": project, "user_id": user_id, "space": space}
            found: EmbeddingRecord | PastEmbeddingRecord | None
            found = session.get(EmbeddingRecord, name)
            if version is not None and (found is None or found.version != version):
                found = session.get(PastEmbeddingRecord, {**name, "version": version})
            return None if found is None else _embedding_value(found)

    def embedding_spaces(self, project: str, user_id: str) -> list[str]:
        """In which there is an embedding of the user, of whatever version; none for nobody."""
        with self._database.read() as session:
            stored = union(
                *(
                    select(table.space).where(table.project == project, table.user_id == user_id)
                    for table in (EmbeddingRecord, PastEmbeddingRecord)
                )
            )
            return sorted(session.scalars(stored))

    def embedding_versions(
        self, project: str, user_id: str, space: str, before: int | None, limit: int
    ) -> list[EmbeddingVersion]:
        """The versions of which there is an embedding, newest first; of those below ``before``.
        Raises ``NotFound`` for the user."""
        with self._database.read() as session:
            if session.get(UserRecord, (project, user_id)) is None:
                raise unknown_user()
            stored = union_all(
                *(
                    select(table.version, table.pairs_used).where(
                        table.project == project, table.user_id == user_id, table.space == space
                    )
                    for table in (EmbeddingRecord, PastEmbeddingRecord)
                )
            ).subquery()
            rows = session.execute(
                select(stored)
                .where(true() if before is None else stored.c.version < before)
                .order_by(stored.c.version.desc())
                .limit(limit)
            )
            return [EmbeddingVersion(*row) for row in rows]

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


def _embedding_value(record: EmbeddingRecord | PastEmbeddingRecord) -> Embedding:
    return Embedding(
        project=record.project,
        user_id=record.user_id,
        incarnation=record.incarnation,
        version=record.version,
        space=record.space,
        values=np.frombuffer(record.data, dtype="<f4").reshape(record.row_count, record.dim),
        pairs_used=record.pairs_used,
        profile=record.profile,
        bits=record.bits,
    )
