"""Taste codes: each stands for one version of somebody's taste, and tells nobody whose it is."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ppd_serve.errors import Conflict, NotFound
from ppd_serve.storage.base import new_id
from ppd_serve.storage.loop_records import PastEmbeddingRecord, TasteCodeRecord
from ppd_serve.storage.records import EmbeddingRecord, UserRecord
from ppd_serve.storage.users import UserStore, locked_user, unknown_user
from ppd_serve.storage.values import TasteCode
from ppd_serve.storage.versions import drop_codes

MOST_CODES = 100  # of one user: a list that a person can look through


class TasteCodeStore(UserStore):
    def add_taste_code(
        self, project: str, user_id: str, incarnation: str, version: int
    ) -> TasteCode:
        """A new code, 128 random bits. Raises ``NotFound`` when this incarnation of the user is
        gone or no embedding of the version is stored, ``Conflict`` when there are too many."""
        with self._database.write() as session:
            user = locked_user(session, project, user_id)
            if user.incarnation != incarnation:
                raise unknown_user()
            mine = {"project": project, "user_id": user_id}
            if not _is_stored(session, mine, version):
                raise NotFound("There is no embedding of this version", field="version")
            total = session.scalars(
                select(func.count()).select_from(TasteCodeRecord).filter_by(**mine)
            ).one()
            if total >= MOST_CODES:
                raise Conflict(f"A user may have {MOST_CODES} taste codes: withdraw one first")
            record = TasteCodeRecord(
                code=new_id("taste"), **mine, version=version, created=self._clock()
            )
            session.add(record)
            return _code_value(record, incarnation)

    def list_taste_codes(self, project: str, user_id: str) -> list[TasteCode]:
        """Oldest first. Raises ``NotFound`` for the user."""
        with self._database.read() as session:
            user = session.get(UserRecord, (project, user_id))
            if user is None:
                raise unknown_user()
            records = session.scalars(
                select(TasteCodeRecord)
                .filter_by(project=project, user_id=user_id)
                .order_by(TasteCodeRecord.created, TasteCodeRecord.version, TasteCodeRecord.code)
            )
            return [_code_value(record, user.incarnation) for record in records]

    def taste_codes(self, project: str, codes: Iterable[str]) -> dict[str, TasteCode]:
        """Those of a project that live, by code."""
        with self._database.read() as session:
            rows = session.execute(
                select(TasteCodeRecord, UserRecord.incarnation)
                .join(
                    UserRecord,
                    (UserRecord.project == TasteCodeRecord.project)
                    & (UserRecord.user_id == TasteCodeRecord.user_id),
                )
                .where(TasteCodeRecord.project == project, TasteCodeRecord.code.in_(list(codes)))
            )
            return {record.code: _code_value(record, incarnation) for record, incarnation in rows}

    def delete_taste_code(self, project: str, user_id: str, code: str) -> None:
        """Withdraw it; also right the second time. What is being drawn with it ends."""
        with self._database.write() as session:
            try:
                user = locked_user(session, project, user_id)
            except NotFound:
                return
            gone = drop_codes(session, user, TasteCodeRecord.code == code, self._clock())
        if gone:
            self._database.scrub()


def _is_stored(session: Session, whose: dict[str, str], version: int) -> bool:
    return any(
        session.scalars(select(table.space).filter_by(**whose, version=version).limit(1)).all()
        for table in (EmbeddingRecord, PastEmbeddingRecord)
    )


def _code_value(record: TasteCodeRecord, incarnation: str) -> TasteCode:
    return TasteCode(record.code, record.user_id, incarnation, record.version, record.created)
