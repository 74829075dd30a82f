"""Idempotency keys: one call's work is done once, and its answer given again for a day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, delete, or_, select, tuple_, update
from sqlalchemy.orm import Session

from ppd_serve.errors import Conflict, InvalidInput
from ppd_serve.storage.base import StoreBase
from ppd_serve.storage.database import batches, insert
from ppd_serve.storage.records import AnswerRecord, AnswerUserRecord, UserRecord
from ppd_serve.storage.values import Idempotency

_LIFETIME = 24 * 3600.0


class AnswerStore(StoreBase):
    def begin_idempotent(
        self, project: str, idempotency: Idempotency, user_ids: Iterable[str] = ()
    ) -> dict[str, Any] | None:
        """``None``: the key is new and now running, do the work, then finish or release it.
        A dict: the answer that this call gave before.

        ``user_ids`` are those the call is about; the record goes when one of them is deleted.
        Raises ``Conflict`` while the key is running, ``InvalidInput`` for another body.
        (Adding pairs has this built in: ``add_pairs(idempotency=…)``.)
        """
        with self._database.write() as session:
            claim, _ = self._claim(session, project, idempotency, user_ids)
            return claim.answer

    def finish_idempotent(
        self, project: str, idempotency: Idempotency, answer: Mapping[str, Any]
    ) -> bool:
        """Keep the JSON ``answer`` for 24 h from the key's first use. False when the record is
        gone (a user it was about has been deleted)."""
        with self._database.write() as session:
            finished = session.scalars(
                update(AnswerRecord)
                .where(*self._running_here(project, idempotency))
                .values(answer=dict(answer), owner=None)
                .returning(AnswerRecord.key)
            ).all()
            return bool(finished)

    def release_idempotent(self, project: str, idempotency: Idempotency) -> None:
        """The work ended without an answer to keep: the next call with this key does it again
        (pairs that were committed stay committed, and aren't added again)."""
        with self._database.write() as session:
            record = session.scalar(
                select(AnswerRecord)
                .where(*self._running_here(project, idempotency))
                .with_for_update()
            )
            if record is not None:
                _release(session, record)

    def _running_here(self, project: str, idempotency: Idempotency) -> tuple[Any, ...]:
        return (
            AnswerRecord.project == project,
            AnswerRecord.route == idempotency.route,
            AnswerRecord.key == idempotency.key,
            AnswerRecord.body_hash == idempotency.body_hash,
            AnswerRecord.owner == self._owners.me,
        )

    def _is_known(self, project: str, idempotency: Idempotency) -> bool:
        with self._database.read() as session:
            return (
                session.get(AnswerRecord, (project, idempotency.route, idempotency.key)) is not None
            )

    def _claim(
        self, session: Session, project: str, idempotency: Idempotency, user_ids: Iterable[str]
    ) -> tuple[AnswerRecord, bool]:
        """The key's record, and whether it is new. Without an answer it is now the caller's."""
        name = (project, idempotency.route, idempotency.key)
        now = self._clock()
        session.execute(
            delete(AnswerRecord).where(
                AnswerRecord.project == name[0],
                AnswerRecord.route == name[1],
                AnswerRecord.key == name[2],
                AnswerRecord.created <= now - _LIFETIME,
                AnswerRecord.owner.is_(None),
            )
        )
        new = session.scalars(
            insert(session, AnswerRecord)
            .values(
                project=name[0],
                route=name[1],
                key=name[2],
                body_hash=idempotency.body_hash,
                owner=self._owners.me,
                created=now,
            )
            .on_conflict_do_nothing()
            .returning(AnswerRecord.key)
        ).all()
        record = session.get(AnswerRecord, name, with_for_update=True)
        if record is None:  # its user was deleted between these two statements
            return self._claim(session, project, idempotency, user_ids)
        if new:
            for user_id in sorted(set(user_ids)):
                session.add(
                    AnswerUserRecord(project=project, route=name[1], key=name[2], user_id=user_id)
                )
            session.flush()
        elif record.body_hash != idempotency.body_hash:
            raise InvalidInput("The key was used with another body", field="Idempotency-Key")
        elif record.owner is not None:
            raise Conflict("A call with this key is still running", field="Idempotency-Key")
        elif record.answer is None:
            record.owner = self._owners.me
        return record, bool(new)

    def _drop_expired_answers(self) -> int:
        with self._database.write() as session:
            return len(
                session.scalars(
                    delete(AnswerRecord)
                    .where(
                        AnswerRecord.created <= self._clock() - _LIFETIME,
                        AnswerRecord.owner.is_(None),
                    )
                    .returning(AnswerRecord.key)
                ).all()
            )

    def _release_of(self, session: Session, owners: Iterable[str]) -> int:
        """Release what dead processes were working on."""
        records = session.scalars(
            select(AnswerRecord).where(AnswerRecord.owner.in_(list(owners))).with_for_update()
        ).all()
        for record in records:
            _release(session, record)
        return len(records)


def answers_about(user: UserRecord) -> ColumnElement[bool]:
    """Which answers are about the user."""
    return tuple_(AnswerRecord.project, AnswerRecord.route, AnswerRecord.key).in_(
        select(AnswerUserRecord.project, AnswerUserRecord.route, AnswerUserRecord.key).filter_by(
            project=user.project, user_id=user.user_id
        )
    )


def forget_answers(session: Session, user: UserRecord, ids: Iterable[str]) -> None:
    """Remove the answers about the user that name one of these random ids: what it was is gone."""
    told = cast(AnswerRecord.answer, Text)
    for batch in batches(ids, 50):
        session.execute(
            delete(AnswerRecord)
            .where(
                answers_about(user), or_(*(told.contains(name, autoescape=True) for name in batch))
            )
            .execution_options(synchronize_session=False)
        )


def _release(session: Session, record: AnswerRecord) -> None:
    if record.added is None:
        session.delete(record)
    else:
        record.owner = None
