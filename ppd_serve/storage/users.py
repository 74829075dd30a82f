"""Users, and everything that goes with one."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from ppd_serve.errors import NotFound
from ppd_serve.storage.answers import answers_about
from ppd_serve.storage.database import batches, insert
from ppd_serve.storage.images import ImageStore, discard_images
from ppd_serve.storage.loop_records import FeedbackRecord, QuestionRecord
from ppd_serve.storage.records import (
    AnswerRecord,
    EmbeddingRecord,
    GenerationRecord,
    GenerationUserRecord,
    ImageRecord,
    PairRecord,
    UserRecord,
)
from ppd_serve.storage.values import DeletedUser, User, UserKey
from ppd_serve.storage.versions import codes_of, drawn_with, drop_versions, lock_codes


class UserStore(ImageStore):
    def put_user(self, project: str, user_id: str) -> tuple[User, bool]:
        """Create the user unless it exists; true when it was created now."""
        with self._database.write() as session:
            created = bool(
                session.execute(
                    insert(session, UserRecord)
                    .values(**blank_user(project, user_id, self._clock()))
                    .on_conflict_do_nothing()
                    .returning(UserRecord.incarnation)
                ).all()
            )
            return user_value(locked_user(session, project, user_id)), created

    def get_user(self, project: str, user_id: str) -> User:
        """Raises ``NotFound``."""
        with self._database.read() as session:
            record = session.get(UserRecord, (project, user_id))
            if record is None:
                raise unknown_user()
            return user_value(record)

    def delete_user(self, project: str, user_id: str) -> DeletedUser | None:
        """Forget the user: pairs, questions, feedback, every embedding and taste code, stored
        answers, generation records, the pictures of these, and all blobs that nobody else uses.
        ``None`` when there was no such user. A picture stays if something of another user's also
        uses it, or if it was drawn in a generation that was not this user's and still has its
        time. What others are drawing with a taste code of this user ends."""
        with self._database.write() as session:
            try:
                user = locked_user(session, project, user_id)
            except NotFound:
                deleted = None
            else:
                deleted = self._delete(session, user)
        # Also for a user who is gone: an earlier call may have failed between commit and here.
        self._drop_doomed_blobs()
        if deleted:
            self._database.scrub()
        return deleted

    def _delete(self, session: Session, user: UserRecord) -> DeletedUser:
        mine = {"project": user.project, "user_id": user.user_id}
        own = select(GenerationUserRecord.generation_id).filter_by(**mine)
        lock_codes(session, codes_of(user))
        session.execute(
            # Locked, so that no picture is added to them from here on; in one order with those of
            # others that end here, so that two deletions never wait in a ring.
            select(GenerationRecord.generation_id)
            .where(
                or_(
                    GenerationRecord.generation_id.in_(own),
                    GenerationRecord.generation_id.in_(drawn_with(codes_of(user))),
                )
            )
            .order_by(GenerationRecord.generation_id)
            .with_for_update()
        )
        generation_ids = list(session.scalars(own.order_by(GenerationUserRecord.generation_id)))
        chosen: set[str] = set()
        for used in (
            select(PairRecord.preferred_image_id, PairRecord.rejected_image_id),
            select(QuestionRecord.left_image_id, QuestionRecord.right_image_id),
            select(FeedbackRecord.image_id),
        ):
            for image_ids in session.execute(used.filter_by(**mine)):
                chosen |= set(image_ids)
        drawn: set[str] = set()
        for batch in batches(generation_ids):
            drawn |= set(
                session.scalars(
                    select(ImageRecord.image_id).where(ImageRecord.generation_id.in_(batch))
                )
            )
            session.execute(
                delete(GenerationRecord).where(GenerationRecord.generation_id.in_(batch))
            )
        others: set[str] = set()
        for batch in batches(chosen - drawn):
            others |= set(
                session.scalars(
                    select(ImageRecord.image_id).where(
                        ImageRecord.image_id.in_(batch),
                        ImageRecord.generation_id.is_not(None),
                        ImageRecord.expires > self._clock(),
                    )
                )
            )
        session.execute(delete(AnswerRecord).where(answers_about(user)))
        session.execute(delete(PairRecord).filter_by(**mine))
        drop_versions(session, user, 0, self._clock())
        session.delete(user)
        session.flush()
        discard_images(session, (chosen | drawn) - others)
        return DeletedUser(user.incarnation, generation_ids)

    def user_keys(self, project: str, user_ids: Iterable[str], space: str) -> dict[str, UserKey]:
        """Incarnation and versions of many users in one query; unknown ids are left out."""
        keys: dict[str, UserKey] = {}
        with self._database.read() as session:
            for batch in batches(user_ids):
                rows = session.execute(
                    select(UserRecord, EmbeddingRecord.version)
                    .outerjoin(
                        EmbeddingRecord,
                        (EmbeddingRecord.project == UserRecord.project)
                        & (EmbeddingRecord.user_id == UserRecord.user_id)
                        & (EmbeddingRecord.space == space),
                    )
                    .where(UserRecord.project == project, UserRecord.user_id.in_(batch))
                )
                for user, version in rows:
                    keys[user.user_id] = UserKey(
                        user.incarnation, user.version, user.pairs_total, version
                    )
        return keys

    def user_ids(self, project: str, incarnations: Iterable[str]) -> dict[str, str]:
        """Incarnation → user id of those that still live, to name what the index found."""
        names: dict[str, str] = {}
        with self._database.read() as session:
            for batch in batches(incarnations):
                rows = session.execute(
                    select(UserRecord.incarnation, UserRecord.user_id).where(
                        UserRecord.project == project, UserRecord.incarnation.in_(batch)
                    )
                )
                names.update((incarnation, user_id) for incarnation, user_id in rows)
        return names


def unknown_user() -> NotFound:
    return NotFound("There is no such user", field="user_id")


def blank_user(project: str, user_id: str, now: float) -> dict[str, str | int | float]:
    return {
        "project": project,
        "user_id": user_id,
        "incarnation": secrets.token_hex(16),
        "version": 0,
        "pairs_total": 0,
        "pairs_added": 0,
        "least_version": 0,
        "created": now,
    }


def locked_user(session: Session, project: str, user_id: str) -> UserRecord:
    """The user's row, which nobody else changes until this transaction ends."""
    record = session.get(
        UserRecord, (project, user_id), with_for_update=True, populate_existing=True
    )
    if record is None:
        raise unknown_user()
    return record


def created_user(session: Session, project: str, user_id: str, now: float) -> UserRecord:
    """``locked_user``, made now if there is none."""
    session.execute(
        insert(session, UserRecord)
        .values(**blank_user(project, user_id, now))
        .on_conflict_do_update(  # takes the lock that DO NOTHING would not take
            index_elements=[UserRecord.project, UserRecord.user_id],
            set_={"user_id": user_id},
        )
    )
    return locked_user(session, project, user_id)


def user_value(record: UserRecord) -> User:
    return User(
        record.project,
        record.user_id,
        record.incarnation,
        record.version,
        record.pairs_total,
        record.created,
    )
